"""The page of a folder of scores: reads the best and the worst clips again, and groups the reasons of the others."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from roboalign_ray.evaluation.report.scores import ScoredClip, ScoresPage, write_scores_page
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.judge.data.score_card import write_card
from roboalign_ray.judge.data.score_record import read_record
from roboalign_ray.judge.data.score_store import final_scores, read_quarantine
from roboalign_ray.judge.rubric import names
from roboalign_ray.pipelines.label.clip_reader import ClipReader
from roboalign_ray.pipelines.label.clips import Clip, ClipInput, list_clips

PAGE = "report.html"
_MOST_PIXELS = 2**25  # of a shown clip


@one_job
def write_score_report(out: Path, clips: int = 6) -> Path:
    """Write `report.html` into a folder of scores and return its path.

    Args:
        clips: how many of the best clips are shown, and of the worst.

    Raises:
        UserError: there are no scores, or a file cannot be read.
    """
    table, quarantined = final_scores(out), read_quarantine(out)
    record, card = read_record(out), write_card(out)
    order = pc.sort_indices(table, [("total", "descending"), ("clip_id", "ascending")])
    best, worst = table.take(order[:clips]), table.take(order[clips:][-clips:][::-1])
    clip_reader = _Clips(record)
    judges = " and ".join(
        f"{judge['name']}" + ("" if judge["version"] is None else f" version {judge['version']}")
        for judge in record["judges"]
    )
    return write_scores_page(
        ScoresPage(
            title="Scores",
            headline=f"{len(table)} clips scored",
            sentence=f"By {judges}. {len(quarantined)} clips have no score.",
            subject=str(record["input"]),
            created=time.strftime("%Y-%m-%d %H:%M"),
            histograms=card["histograms"],
            means=card["mean"],
            groups={"The best clips": clip_reader.shown(best), "The worst clips": clip_reader.shown(worst)},
            quarantine=_by_reason(quarantined),
        ),
        out / PAGE,
    )


class _Clips:
    """Finds clips of the scored input again."""

    def __init__(self, record: dict[str, Any]) -> None:
        # The instruction is in the scores: any one lets a clip without its own be read.
        self._source = ClipInput(
            record["input"], instruction="-", video_column=record["video_column"], view=record["view"]
        )
        self._reader = ClipReader(self._source, _MOST_PIXELS)
        self._clips: dict[str, Clip] = {}
        self._fault = ""
        try:
            self._clips = {clip.clip_id: clip for clip in list_clips(self._source)}
        except UserError as error:
            self._fault = error.line()

    def shown(self, table: pa.Table) -> list[ScoredClip]:
        """The clips of these rows."""
        return [self._one(row) for row in table.to_pylist()]

    def _one(self, row: dict[str, Any]) -> ScoredClip:
        clip = self._clips.get(row["clip_id"])
        found = None if clip is None else self._reader.read(clip)
        request = getattr(found, "request", None)
        missing = getattr(found, "reason", "") or self._fault or "the clip is no longer in the input"
        if found is not None and getattr(found, "sha256", row["input_sha256"]) != row["input_sha256"]:
            request, missing = None, "the clip has changed since it was scored"
        return ScoredClip(
            row["clip_id"],
            row["instruction"],
            row["judge"],
            row["rationale"] or "",
            [*(row[name] for name in names()), row["total"]],
            None if request is None else request.frames,
            row["fps"],
            missing,
        )


def _by_reason(quarantined: dict[str, str]) -> list[tuple[str, int, str]]:
    """Reasons without the names of their clips, with how many clips have them and one of these."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name, reason in quarantined.items():
        words = reason
        for part in (name, Path(name).name, Path(name).with_suffix(".json").name):
            words = words.replace(part, "…")
        words = words.removeprefix("…: ")
        counts[words] += 1
        examples.setdefault(words, name)
    return [(words, count, examples[words]) for words, count in counts.most_common()]
