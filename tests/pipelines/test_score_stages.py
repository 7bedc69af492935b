"""The stages of a scoring job without Ray: tables in and out, and what becomes of each clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scored_clips import BAD, GOOD, MOST_PIXELS, write_clips
from tiny_student import tiny_student

from roboalign_ray.episodes.video import decode_video
from roboalign_ray.foundation.failures import Failed, HostError
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.judge.student.judge import StudentJudge
from roboalign_ray.pipelines.label.clip_reader import clips_as_text
from roboalign_ray.pipelines.label.clips import ClipInput, list_clips
from roboalign_ray.pipelines.label.score_stages import (
    BAD as UNUSABLE,
)
from roboalign_ray.pipelines.label.score_stages import (
    DECODED,
    HOST,
    JUDGED,
    DecodeStage,
    JudgeStage,
    judgement_of_row,
    request_of,
)
from roboalign_ray.pipelines.label.score_stages import (
    GOOD as SOUND,
)


def decoded(folder: Path, block_bytes: int = 10**9) -> list[pa.Table]:
    source = ClipInput(str(folder))
    clips = list_clips(source)
    texts = [clips_as_text(clips[:4]), clips_as_text(clips[4:])]
    return list(DecodeStage(source, MOST_PIXELS, block_bytes)(pa.table({"clips": texts})))


def test_reading_gives_frames_or_reasons_and_hands_on_full_blocks(tmp_path: Path) -> None:
    write_clips(tmp_path)
    [whole] = decoded(tmp_path)
    assert whole.schema == DECODED
    rows = whole.drop_columns(["video"]).to_pylist()
    assert {row["clip_id"]: row["status"] for row in rows} == {
        **dict.fromkeys(GOOD, SOUND),
        **dict.fromkeys(BAD, UNUSABLE),
    }
    for number, row in enumerate(rows):
        if row["status"] == SOUND:
            request = request_of(whole, number)
            np.testing.assert_array_equal(request.frames, decode_video(tmp_path / row["clip_id"]))
            assert (request.fps, request.instruction) == (row["fps"], row["instruction"])
    small = decoded(tmp_path, block_bytes=1)
    assert len(small) == len(GOOD)
    again = pa.concat_tables(small)
    assert again.drop_columns(["decode_seconds"]).equals(whole.drop_columns(["decode_seconds"]))


def test_judging_gives_the_judges_numbers_in_their_place(tmp_path: Path) -> None:
    write_clips(tmp_path)
    [table] = decoded(tmp_path)
    judge = StudentJudge(tiny_student())
    judged = JudgeStage(lambda: judge)(table)
    assert judged.schema == JUDGED
    for number, row in enumerate(judged.to_pylist()):
        if row["status"] != SOUND:
            assert row["scores"] is None
            continue
        [wanted] = judge.judge([request_of(table, number)])
        assert isinstance(wanted, Judgement)
        found = judgement_of_row(row)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.std, wanted.std, rtol=1e-5, atol=1e-6)


class Odd:
    """Fails on the first clip; with a full disk, on all."""

    name, version = "odd", None

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        if self.error is not None:
            raise self.error
        scored = [Judgement(np.full(6, 0.5), np.zeros(6), rationale="so") for _ in requests[1:]]
        return [Failed("no answer", "parse"), *scored]


def test_a_failed_score_is_a_reason_and_a_full_disk_is_neither(tmp_path: Path) -> None:
    write_clips(tmp_path)
    [table] = decoded(tmp_path)
    rows = {row["clip_id"]: row for row in JudgeStage(Odd)(table).to_pylist()}
    assert (rows[GOOD[0]]["status"], rows[GOOD[0]]["reason"]) == (UNUSABLE, "no answer")
    assert all((rows[name]["status"], rows[name]["rationale"]) == (SOUND, "so") for name in GOOD[1:])
    full = JudgeStage(lambda: Odd(HostError("No space left on device")))(table).to_pylist()
    assert {row["clip_id"] for row in full if row["status"] == HOST} == set(GOOD)
    assert {row["clip_id"] for row in full if row["status"] == UNUSABLE} == set(BAD)


def test_a_machine_that_denies_access_to_a_file_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path)
    source = ClipInput(str(tmp_path), instruction="open it")
    texts = pa.table({"clips": [clips_as_text(list_clips(source)[:1])]})

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / GOOD[0]))

    monkeypatch.setattr("pathlib.Path.open", denied)
    [table] = DecodeStage(source, MOST_PIXELS, 1)(texts)
    [row] = table.to_pylist()
    assert row["status"] == HOST
    assert "Permission denied" in row["reason"]
