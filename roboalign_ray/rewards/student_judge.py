"""The distilled judge as a reward: R = sum_k w_k g_k(instruction, video) over the six rubric dimensions.

The form is RoboAlign-R1's (arXiv 2605.03821); its weights are unpublished, ours are in `JudgedRewardConfig`. Every
score records the student's version. A sample that the student cannot score is `Failed`, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.config.rewards import JudgedRewardConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.rubric import names
from roboalign_ray.judge.student.model import Student, with_start
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Score, Scored

UNCERTAINTY = "uncertainty"
PART = "judged"  # its name in a weighted sum


class JudgedReward:
    """Implements `Reward`. Components: the six dimensions in points, and "uncertainty", the mean weighted standard
    deviation in points.

    Args:
        student: published student; the attribute may be replaced by a newer one between calls.
        config: weights.
    """

    def __init__(self, student: Student, config: JudgedRewardConfig) -> None:
        self.student, self.config = student, config
        self.weights = np.asarray(config.weights, dtype=np.float64)

    @classmethod
    def from_context(cls, config: JudgedRewardConfig, context: RewardContext) -> JudgedReward:
        """The scorer's student, on its device.

        Raises:
            UserError: there is none.
        """
        if context.student is None:
            raise UserError("the reward needs a student", where="reward.judged")
        return cls(context.student.to(context.device).eval(), config)

    @property
    def version(self) -> int:
        """Version of the current student."""
        return self.student.version

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order; the clip is one view of start and generated frames."""
        generated = inputs.generated
        view = _view(inputs, self.config.view)
        if isinstance(view, Failed):
            return [view] * len(generated)
        videos = with_start(inputs.start[view], generated[:, :, view])
        judged = self.student.score(videos, [inputs.instruction] * len(videos), batch=self.config.batch)
        return [self._total(s, d, judged.version) for s, d in zip(judged.scores, judged.std, strict=True)]

    def _total(self, scores: np.ndarray, std: np.ndarray, version: int) -> Score:
        uncertainty = float(self.weights @ std / self.weights.sum())
        total = float(self.weights @ scores) - self.config.uncertainty_penalty * uncertainty
        if not np.isfinite(total):
            return Failed(f"student version {version} gave a score that is not finite", "nan")
        parts = dict(zip(names(), map(float, scores), strict=True))
        return Scored(total, {**parts, UNCERTAINTY: uncertainty}, version)


def judged_scores(score: Score) -> np.ndarray | None:
    """The student's six scores, points float64 [6], in a sample's score; None if it has none."""
    if isinstance(score, Failed):
        return None
    parts = score.components
    for prefix in ("", f"{PART}/"):
        if all(f"{prefix}{name}" in parts for name in names()):
            return np.array([parts[f"{prefix}{name}"] for name in names()], np.float64)
    return None


def _view(inputs: RewardInput, name: str | None) -> int | Failed:
    """Number of the view that is scored, or the reason why the group cannot be scored."""
    if (fault := inputs.fault()) is not None:
        return fault
    if not inputs.instruction.strip():
        return Failed("no instruction to judge against", "missing")
    if name is None:
        return 0
    if name not in inputs.views:
        there = ", ".join(inputs.views) or "they have no names"
        return Failed(f"no view '{name}' to judge (views: {there})", "missing")
    return inputs.views.index(name)
