"""What a step earns: from the score of a frame, or from how much the score of a clip has risen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.rubric import names
from roboalign_ray.planning.episodes import EpisodeSoFar
from roboalign_ray.planning.scoring import ClipScorer
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.rewards.student_judge import PART, UNCERTAINTY, judged_scores


@dataclass(frozen=True)
class StepReward:
    """What one step earned.

    Attributes:
        reward: of the step.
        score: of the clip, or of the frame; None where there is no reward.
    """

    reward: float
    score: Scored | None

    def info(self) -> dict[str, Any]:
        """Entries of the environment's info: the score and, of a judge, its six scores and its uncertainty."""
        if self.score is None:
            return {}
        info: dict[str, Any] = {"score": self.score.total}
        if (six := judged_scores(self.score)) is not None:
            info["judged"] = dict(zip(names(), map(float, six), strict=True))
            parts = self.score.components
            info[UNCERTAINTY] = parts.get(UNCERTAINTY, parts.get(f"{PART}/{UNCERTAINTY}", 0.0))
        return info


def step_rewards(scorer: ClipScorer | None, episodes: Mapping[int, EpisodeSoFar]) -> dict[int, StepReward]:
    """What the newest frame earned each episode; keeps the score of the clip in it.

    Raises:
        UserError: a clip could not be scored. It is never taken for 0.
    """
    if scorer is None:
        return {number: StepReward(0.0, None) for number in episodes}
    found = {}
    answers = scorer.scores([episode.clip() for episode in episodes.values()])
    for (number, episode), score in zip(episodes.items(), answers, strict=True):
        if isinstance(score, Failed):
            raise UserError(f"cannot score step {episode.steps} ({score.reason})", where="reward")
        if score.per_frame is not None:
            earned = float(score.per_frame[-1])
        else:
            earned, episode.score = score.total - episode.score, score.total
        found[number] = StepReward(earned, score)
    return found
