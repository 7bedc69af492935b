"""The stages of a scoring job as callables for actor pools: one reads clips, one judges them. Arrow tables in and out.

    clips, as text ──► DecodeStage ──frames──► JudgeStage ──► judgements, or reasons

A clip that cannot be read or judged is a row with its reason. A failure of the machine is a row too: the driver ends
the job with it, instead of taking it for bad data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from roboalign_ray.foundation.failures import Failed, HostError
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.judge.serving.http import ServedJudge
from roboalign_ray.pipelines.label.clip_reader import ClipReader, clips_of_text
from roboalign_ray.pipelines.label.clips import Clip, ClipInput
from roboalign_ray.pipelines.label.videos import Unreadable

GOOD, SAME, BAD, HOST = "good", "same", "bad", "host"  # what came of a clip

DECODED = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stamp", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("input_sha256", pa.string()),
        ("instruction", pa.string()),
        ("fps", pa.float64()),
        ("shape", pa.list_(pa.int64())),
        ("decode_seconds", pa.float64()),
        ("video", pa.large_binary()),
    ]
)
JUDGED = pa.schema(
    [
        *(field for field in DECODED if field.name != "video"),
        ("scores", pa.list_(pa.float64())),
        ("std", pa.list_(pa.float64())),
        ("rationale", pa.string()),
        ("seconds", pa.float64()),
    ]
)


class DecodeStage:
    """Reads clips.

    Args:
        source: the input that they are of.
        most_pixels: limit on the pixels of all frames of a clip.
        block_bytes: frames are handed on when there are this many bytes.
    """

    def __init__(self, source: ClipInput, most_pixels: int, block_bytes: int) -> None:
        self._reader, self._most = ClipReader(source, most_pixels), block_bytes

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Tables of `DECODED`, for the clips in a table's column of texts."""
        rows: list[dict[str, Any]] = []
        held = 0
        for clip in (clip for text in table["clips"].to_pylist() for clip in clips_of_text(text)):
            rows.append(self._row(clip))
            held += len(rows[-1]["video"] or b"")
            if held >= self._most:
                yield pa.Table.from_pylist(rows, schema=DECODED)
                rows, held = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=DECODED)

    def _row(self, clip: Clip) -> dict[str, Any]:
        began = time.perf_counter()
        row: dict[str, Any] = {"clip_id": clip.clip_id, "stamp": clip.stamp, "video": None}
        try:
            found = self._reader.read(clip)
        except HostError as error:
            return row | {"status": HOST, "reason": error.line()}
        if isinstance(found, Unreadable):
            return row | {"status": BAD, "reason": found.reason}
        row["decode_seconds"] = time.perf_counter() - began
        if found.request is None:
            return row | {"status": SAME}
        frames, request = np.ascontiguousarray(found.request.frames), found.request
        return row | {
            "status": GOOD,
            "input_sha256": found.sha256,
            "instruction": request.instruction,
            "fps": float(request.fps),
            "shape": list(frames.shape),
            "video": frames.data.cast("B"),
        }


class JudgeStage:
    """Judges decoded clips, those of a table together.

    Args:
        opener: opens the judge.
    """

    def __init__(self, opener: Callable[[], ServedJudge]) -> None:
        self._judge = opener()

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `JUDGED`, in order."""
        statuses = table["status"].to_pylist()
        wanted = [number for number, status in enumerate(statuses) if status == GOOD]
        rows = table.drop_columns(["video"]).to_pylist()
        empty = {"scores": None, "std": None, "rationale": None, "seconds": 0.0}
        for row in rows:
            row.update(empty)
        began = time.perf_counter()
        outcomes = self._judged([request_of(table, number) for number in wanted])
        each = (time.perf_counter() - began) / max(1, len(wanted))
        for number, outcome in zip(wanted, outcomes, strict=True):
            rows[number].update(_outcome_row(outcome), seconds=each)
        return pa.Table.from_pylist(rows, schema=JUDGED)

    def _judged(self, requests: list[JudgeRequest]) -> list[Judgement | Failed]:
        try:
            return self._judge.judge(requests)
        except HostError as error:
            return [Failed(error.line(), HOST)] * len(requests)


def _outcome_row(outcome: Judgement | Failed) -> dict[str, Any]:
    if isinstance(outcome, Failed):
        return {"status": HOST if outcome.kind == HOST else BAD, "reason": outcome.reason}
    scores, std = outcome.scores.tolist(), outcome.std.tolist()
    return {"scores": scores, "std": std, "rationale": outcome.rationale}


def request_of(table: pa.Table, number: int) -> JudgeRequest:
    """The question of a row of `DECODED` whose status is good; its frames share the table's memory."""
    cells = {name: table[name][number] for name in ("clip_id", "instruction", "fps", "shape", "video")}
    shape = tuple(cells["shape"].as_py())
    frames = np.frombuffer(cells["video"].as_buffer(), np.uint8).reshape(shape)
    return JudgeRequest(
        frames, cells["fps"].as_py(), cells["instruction"].as_py(), name=cells["clip_id"].as_py()
    )


def judgement_of_row(row: dict[str, Any]) -> Judgement:
    """The judgement of a row of `JUDGED` whose status is good."""
    return Judgement(np.array(row["scores"]), np.array(row["std"]), rationale=row["rationale"])
