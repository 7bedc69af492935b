"""What a scoring job reports, and how a teacher's labels become scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.judge.data.score_record import JudgeIdentity
from roboalign_ray.judge.data.score_store import ScoreSet, score_row
from roboalign_ray.judge.protocol import Judgement
from roboalign_ray.pipelines.label.clips import Clip
from roboalign_ray.pipelines.label.label_run import Question
from roboalign_ray.pipelines.label.score_stages import GOOD


@dataclass
class ScoreReport:
    """The result of a run.

    Attributes:
        clips: clips of the input.
        scored: scores written by this run.
        known: clips whose score was there before.
        second: of the scored ones, those that the teacher scored in the second stage.
        quarantined: id -> reason, for clips without a score.
        seconds: duration of the run without the start of Ray.
        decode_seconds, judge_seconds: time that actors spent reading and judging.
    """

    clips: int = 0
    scored: int = 0
    known: int = 0
    second: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    decode_seconds: float = 0.0
    judge_seconds: float = 0.0

    def cost(self) -> str:
        """One line: rate, and time of actors per thousand clips."""
        if not self.scored:
            return "nothing to score"
        each = 1000 / self.scored
        rate = self.scored / max(self.seconds, 1e-9)
        return (
            f"{self.scored} scores in {self.seconds:.1f} s: {rate:.2f} a second; per 1,000 scores, actors read for "
            f"{self.decode_seconds * each:.1f} s and judged for {self.judge_seconds * each:.1f} s"
        )


class ScoreSink:
    """Stores a teacher's labels as scores.

    Args:
        scores: the set that they go to.
        judge: the teacher.
        clips: the clips of the run.
        progress: advanced by every label.

    Attributes:
        seconds: time until the last label.
    """

    def __init__(
        self, scores: ScoreSet, judge: JudgeIdentity, clips: Sequence[Clip], progress: Progress
    ) -> None:
        self._scores, self._judge, self._progress = scores, judge, progress
        changed = {clip.clip_id for clip in clips if clip.before}
        self.known = frozenset(scores.scored.keys() - changed)
        self._rows: list[dict[str, Any]] = []
        self.seconds, self._last = 0.0, time.monotonic()

    def add(self, question: Question, judgement: Judgement) -> None:
        """See `LabelSink`."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        self.seconds += took
        self._rows.append(row_of(question.source | {"seconds": took}, judgement, self._judge))
        self._progress.advance()

    def keep(self) -> int:
        """See `LabelSink`."""
        rows, self._rows = self._rows, []
        self._scores.append(rows)
        return len(rows)


def row_of(row: dict[str, Any], judgement: Judgement, judge: JudgeIdentity) -> dict[str, Any]:
    """The score of a clip that was read: a row of `SCORE_SCHEMA` from a row of `DECODED`."""
    assert row["status"] == GOOD
    kept = ("clip_id", "stamp", "input_sha256", "instruction", "fps", "decode_seconds", "seconds")
    return score_row(judgement, judge, frames=row["shape"][0], **{name: row[name] for name in kept})
