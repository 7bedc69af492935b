"""The reward gate: what any judge must show before it may reward a policy.

A held-out clip as it was must score higher than the same clip spoiled in each of nine ways, by at least a quarter of
the judge's range. A judge that fails here would teach its own blind spot: pixel L1, for one, hardly minds blur.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from roboalign_ray.config.judge import GateConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import maxima

TOTAL_RANGE = float(maxima().sum())
_BLUR_SHARE = 1 / 16  # Gaussian radius as a share of the frame's height
_MOST_FAILED = 0.5


@dataclass(frozen=True)
class GateClip:
    """A real clip that a judge is tried on.

    Attributes:
        clip_id: names it.
        frames: uint8 [T, H, W, 3].
        instruction: what is done in it.
        wrong_actions: uint8 [T', H, W, 3], what other actions led to from the same start; None where unknown.
    """

    clip_id: str
    frames: np.ndarray
    instruction: str
    wrong_actions: np.ndarray | None = None


@dataclass(frozen=True)
class Question:
    """What a judge is asked to score.

    Attributes:
        frames: uint8 [T, H, W, 3].
        instruction: the sentence.
        reference: uint8 [T, H, W, 3], the real clip, for judges that compare.
    """

    frames: np.ndarray
    instruction: str
    reference: np.ndarray


Judge = Callable[[Sequence[Question]], np.ndarray]
"""Questions to float [N]; higher is better, NaN where no score could be given."""


@dataclass(frozen=True)
class GateRow:
    """One trial.

    Attributes:
        trial: how clips were spoiled.
        clips: clips that both were scored of.
        failed: clips without a score.
        exact, spoiled: mean scores.
        gap: their difference as a share of the range.
        wins: share of clips on which the exact one scores higher; ties count half.
        passed: whether this opens the gate.
    """

    trial: str
    clips: int
    failed: int
    exact: float
    spoiled: float
    gap: float
    wins: float
    passed: bool


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
        """Markdown."""
        lines = ["| trial | clips | exact | spoiled | gap | wins | |", "|---|---|---|---|---|---|---|"]
        for row in self.rows:
            verdict = "passed" if row.passed else "FAILED"
            figures = f"{row.exact:.2f} | {row.spoiled:.2f} | {row.gap:.1%} | {row.wins:.0%}"
            lines.append(f"| {row.trial} | {row.clips} | {figures} | {verdict} |")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        rows = [{k: None if v != v else v for k, v in asdict(row).items()} for row in self.rows]
        return {"judge": self.judge, "open": self.open, "smallest_gap": self.smallest_gap, "rows": rows}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> GateResult:
        """What `as_json` gave."""
        rows = []
        for row in told["rows"]:
            figures: dict[str, Any] = {k: float("nan") if v is None else v for k, v in row.items()}
            rows.append(GateRow(**figures))
        return cls(told["judge"], tuple(rows), told["smallest_gap"])

    def failed(self) -> str:
        """The trials that keep it closed, with their gaps."""
        return ", ".join(f"{row.trial} ({row.gap:.1%})" for row in self.rows if not row.passed)

    def assert_open(self) -> None:
        """Let the judge reward.

        Raises:
            UserError: a trial failed; the message holds every trial's gap, its details the table.
        """
        if self.open:
            return
        told = ", ".join(
            f"{row.trial} {row.gap:.1%}{'' if row.passed else ' FAILED'}"
            if row.clips
            else f"{row.trial} not tried FAILED"
            for row in self.rows
        )
        raise UserError(
            f"the reward gate is closed; gaps to the exact clip (at least {self.smallest_gap:.0%}): {told}",
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
    """Try a judge.

    Args:
        judge: any reward, as a function of questions.
        clips: real held-out clips; two or more different instructions among them.
        config: trials and bars.
        name: the judge's, for tables.
        reward_range: largest minus smallest score the judge can give.
        seed: of shuffles, noise and partners.

    Raises:
        UserError: no clip, or the judge answers with another number of scores.
    """
    if not clips:
        raise UserError("no real clip to try the judge on", where=name, remedy="hold out some real episodes")
    exact = _asked(judge, [Question(c.frames, c.instruction, c.frames) for c in clips], name)
    rows = []
    for trial in config.trials:
        spoiled = spoil(trial, clips, seed)
        kept = [n for n, question in enumerate(spoiled) if question is not None]
        answers = _asked(judge, [q for q in spoiled if q is not None], name) if kept else np.empty(0)
        rows.append(_row(trial, exact[kept], answers, config, reward_range))
    return GateResult(name, tuple(rows), config.smallest_gap)


def spoil(trial: str, clips: Sequence[GateClip], seed: int = 0) -> list[Question | None]:
    """Every clip spoiled in one way; None where that clip cannot be (no partner with another instruction, no record
    of other actions)."""
    if trial in _FRAME_TRIALS:
        change = _FRAME_TRIALS[trial]
        return [
            Question(change(clip.frames, np.random.default_rng((seed, n))), clip.instruction, clip.frames)
            for n, clip in enumerate(clips)
        ]
    if trial == "wrong_actions":
        return [
            None if c.wrong_actions is None else Question(c.wrong_actions, c.instruction, c.frames)
            for c in clips
        ]
    made: list[Question | None] = []
    for number, clip in enumerate(clips):
        other = _partner(clips, number)
        if other is None:
            made.append(None)
        elif trial == "wrong_clip":
            made.append(Question(other.frames, clip.instruction, clip.frames))
        else:
            made.append(Question(clip.frames, other.instruction, clip.frames))
    return made


def _partner(clips: Sequence[GateClip], number: int) -> GateClip | None:
    """The next clip with another instruction."""
    told = clips[number].instruction.strip().lower()
    following = (clips[(number + n) % len(clips)] for n in range(1, len(clips)))
    return next((clip for clip in following if clip.instruction.strip().lower() != told), None)


def _asked(judge: Judge, questions: Sequence[Question], name: str) -> np.ndarray:
    answers = np.asarray(judge(questions), dtype=np.float64)
    if answers.shape != (len(questions),):
        raise UserError(f"answered {answers.shape} to {len(questions)} questions, want [N]", where=name)
    return answers


def _row(
    trial: str, exact: np.ndarray, spoiled: np.ndarray, config: GateConfig, reward_range: float
) -> GateRow:
    scored = np.isfinite(exact) & np.isfinite(spoiled)
    failed = int((~scored).sum())
    if not scored.any():
        nan = float("nan")
        return GateRow(trial, 0, failed, nan, nan, nan, nan, False)
    a, b = exact[scored], spoiled[scored]
    gap = float((a.mean() - b.mean()) / reward_range)
    wins = float(((a > b) + 0.5 * (a == b)).mean())
    # A judge that fails on every other clip has not been tried, however well it does on the rest.
    passed = gap >= config.smallest_gap and wins >= config.least_wins and failed <= _MOST_FAILED * len(scored)
    return GateRow(trial, len(a), failed, float(a.mean()), float(b.mean()), gap, wins, passed)


def _blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius = ImageFilter.GaussianBlur(max(1.0, frames.shape[1] * _BLUR_SHARE))
    return np.stack([np.asarray(Image.fromarray(frame).filter(radius)) for frame in frames])


def _mean(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mean = np.rint(frames.mean(axis=0, dtype=np.float64)).astype(np.uint8)
    return np.broadcast_to(mean, frames.shape)


def _shuffled(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(frames))
    if (order == np.arange(len(order))).all():
        order = np.roll(order, 1)
    return frames[order]


_FRAME_TRIALS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blur": _blurred,
    "static": lambda frames, rng: np.broadcast_to(frames[:1], frames.shape),
    "temporal_mean": _mean,
    "shuffle": _shuffled,
    "reverse": lambda frames, rng: frames[::-1],
    "random": lambda frames, rng: rng.integers(0, 256, frames.shape, dtype=np.uint8),
}
