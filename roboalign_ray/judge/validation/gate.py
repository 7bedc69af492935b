"""The reward gate: the test that any judge must pass before it may reward a policy.

In each trial, an unchanged held-out clip must score higher, by at least a quarter of the judge's range, than the same
clip degraded (as a whole or in any third) or judged by a wrong instruction. With a paraphrased instruction the score
must stay the same. A judge that fails would teach the policy its blind spot: pixel L1, for example, hardly penalises
blur.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from roboalign_ray.config.judge import GateConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.parts import THIRDS
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.validation.trials import (
    GateClip,
    Question,
    is_paraphrase,
    may_be_left_out,
    trial_questions,
)

TOTAL_RANGE = float(maxima().sum())
_MOST_FAILED = 0.5
_NAN = float("nan")


Judge = Callable[[Sequence[Question]], np.ndarray]
"""Questions to float [N]; higher is better, NaN where no score could be given."""


@dataclass(frozen=True)
class GateRow:
    """One trial.

    Attributes:
        trial: name of the degradation or rewording.
        clips: number of clips with both scores.
        failed: clips without a score.
        exact, spoiled: mean scores of the unchanged and of the degraded clips.
        gap: their difference as a share of the range; for local trials that of the third with the smallest gap; for
            paraphrases the mean absolute difference, which must be small.
        wins: share of clips whose unchanged version scores higher, ties count half; for local trials the smallest of
            the thirds.
        passed: whether the trial is passed. A trial without suitable clips also passes if it may be left out
            (`trials.may_be_left_out`); it has no clips and no figures.
        thirds: the gap in each third, NaN if it was not tested; empty if clips are degraded as a whole.
    """

    trial: str
    clips: int
    failed: int
    exact: float
    spoiled: float
    gap: float
    wins: float
    passed: bool
    thirds: tuple[float, ...] = ()


@dataclass(frozen=True)
class GateResult:
    """All trials of one judge."""

    judge: str
    rows: tuple[GateRow, ...]
    smallest_gap: float

    @property
    def open(self) -> bool:
        """Whether every trial passed."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def table(self) -> str:
        """The trials as a Markdown table."""
        lines = [
            "| trial | clips | exact | spoiled | gap | in each third | wins | |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            verdict = ("passed" if row.clips else "not tried") if row.passed else "FAILED"
            thirds = ", ".join(f"{gap:.1%}" for gap in row.thirds)
            same = is_paraphrase(row.trial)
            gap, wins = (f"±{row.gap:.1%}", "") if same else (f"{row.gap:.1%}", f"{row.wins:.0%}")
            scores = f"{row.exact:.2f} | {row.spoiled:.2f}"
            lines.append(f"| {row.trial} | {row.clips} | {scores} | {gap} | {thirds} | {wins} | {verdict} |")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        rows = [{key: _nan_as_null(value) for key, value in asdict(row).items()} for row in self.rows]
        return {"judge": self.judge, "open": self.open, "smallest_gap": self.smallest_gap, "rows": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GateResult:
        """Read the result of `as_json`."""
        rows = []
        for row in content["rows"]:
            figures: dict[str, Any] = {key: _null_as_nan(value) for key, value in row.items()}
            rows.append(GateRow(**figures))
        return cls(content["judge"], tuple(rows), content["smallest_gap"])

    def failed(self) -> str:
        """The failed trials with their gaps."""
        return ", ".join(f"{row.trial} ({row.gap:.1%})" for row in self.rows if not row.passed)

    def assert_open(self) -> None:
        """Check that the judge may give rewards.

        Raises:
            UserError: a trial failed; the message has the gaps of the failed trials, its details the table.
        """
        if self.open:
            return
        failed = [row for row in self.rows if not row.passed]
        gaps = ", ".join(
            f"{row.trial} {row.gap:.1%}" if row.clips else f"{row.trial} not tried" for row in failed
        )
        raise UserError(
            f"the reward gate is closed: {len(failed)} of {len(self.rows)} trials failed, by their gaps to the exact "
            f"clip (at least {self.smallest_gap:.0%}; for paraphrases small): {gaps}",
            where=self.judge,
            remedy="train the judge on more or stronger examples of what failed; it must not reward as it is",
            details=self.table(),
        )


def run_gate(
    judge: Judge,
    clips: Sequence[GateClip],
    config: GateConfig,
    *,
    name: str = "judge",
    reward_range: float = TOTAL_RANGE,
    seed: int = 0,
) -> GateResult:
    """Run all trials on a judge.

    Args:
        judge: any reward, as a function of questions.
        clips: real held-out clips with at least two different instructions.
        config: trials and thresholds.
        name: name of the judge, for tables.
        reward_range: largest minus smallest score that the judge can give.
        seed: seed of shuffles, noise and partners.

    Raises:
        UserError: there is no clip, or the judge returns another number of scores.
    """
    if not clips:
        raise UserError("no real clip to try the judge on", where=name, remedy="hold out some real episodes")
    exact = _scores(judge, [Question(c.frames, c.instruction, c.frames) for c in clips], name)
    rows = []
    for trial in config.trials:
        degraded = trial_questions(trial, clips, seed)
        if may_be_left_out(trial) and not any(degraded):
            rows.append(GateRow(trial, 0, 0, _NAN, _NAN, _NAN, _NAN, True))
            continue
        kept = [n for n, question in enumerate(degraded) if question is not None]
        questions = [question for question in degraded if question is not None]
        answers = _scores(judge, questions, name) if kept else np.empty(0)
        thirds = [question.third for question in questions]
        rows.append(_row(trial, exact[kept], answers, thirds, config, reward_range))
    return GateResult(name, tuple(rows), config.smallest_gap)


def _scores(judge: Judge, questions: Sequence[Question], name: str) -> np.ndarray:
    answers = np.asarray(judge(questions), dtype=np.float64)
    if answers.shape != (len(questions),):
        raise UserError(f"answered {answers.shape} to {len(questions)} questions, want [N]", where=name)
    return answers


def _row(
    trial: str,
    exact: np.ndarray,
    degraded: np.ndarray,
    thirds: Sequence[int | None],
    config: GateConfig,
    reward_range: float,
) -> GateRow:
    scored = np.isfinite(exact) & np.isfinite(degraded)
    failed = int((~scored).sum())
    if not scored.any():
        return GateRow(trial, 0, failed, _NAN, _NAN, _NAN, _NAN, False)
    a, b = exact[scored], degraded[scored]
    shares, won = (a - b) / reward_range, (a > b) + 0.5 * (a == b)
    places = np.array([-1 if third is None else third for third in thirds])[scored]
    gap, wins = (min(values[places == n].mean() for n in np.unique(places)) for values in (shares, won))
    by_third = tuple(
        float(shares[places == n].mean()) if (places == n).any() else _NAN for n in range(THIRDS)
    )
    if is_paraphrase(trial):
        gap = np.abs(shares).mean()
        passed = gap <= config.largest_change
    else:
        passed = gap >= config.smallest_gap and wins >= config.least_wins
    # A judge that fails on half of the clips does not pass, however well it scores the rest.
    passed = bool(passed) and failed <= _MOST_FAILED * len(scored)
    gaps = () if (places < 0).any() else by_third
    return GateRow(
        trial, len(a), failed, float(a.mean()), float(b.mean()), float(gap), float(wins), passed, gaps
    )


def _nan_as_null(value: Any) -> Any:
    """Replace NaN by None, since JSON has no NaN."""
    if isinstance(value, (tuple, list)):
        return [_nan_as_null(one) for one in value]
    return None if value != value else value


def _null_as_nan(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_null_as_nan(one) for one in value)
    return _NAN if value is None else value
