"""Rollouts with their scores, and the few numbers of them that are sent to the driver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.alignment.advantages import rewards_of
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Score, Scored
from roboalign_ray.world_model.protocol import Rollout


@dataclass(frozen=True)
class ScoredGroup:
    """A rollout and one score per sample: the learner's training data. Codes and numbers, no pixels.

    Attributes:
        rollout: G samples of one prompt.
        scores: G scores, in the order of the seeds.
    """

    rollout: Rollout
    scores: tuple[Score, ...]

    def record(self) -> GroupRecord:
        """The numbers of this group."""
        return GroupRecord(
            prompt_id=self.rollout.prompt_id,
            seeds=self.rollout.seeds,
            versions=self.rollout.versions,
            scores=self.scores,
            units=int(self.rollout.payload.units),
            rollout_seconds=float(np.sum(self.rollout.cost.seconds_per_frame)),
        )


@dataclass(frozen=True)
class GroupRecord:
    """The numbers of a group that the driver gets; no generated data.

    Attributes:
        prompt_id, seeds, scores: as in the group.
        versions: weight version per segment.
        units: generated units of all samples, see `Payload.units`.
        rollout_seconds: wall time of the group's rollout batch.
        together: numbers of the groups of its rollout batch, including its own; the last bit of its log-probabilities
            depends on them. Empty if groups have no numbers.
    """

    prompt_id: str
    seeds: tuple[int, ...]
    versions: tuple[int, ...]
    scores: tuple[Score, ...]
    units: int
    rollout_seconds: float
    together: tuple[int, ...] = ()

    def as_json(self) -> dict[str, object]:
        """JSON types only: one line of the journal."""
        return {
            "prompt": self.prompt_id,
            "seeds": list(self.seeds),
            "versions": list(self.versions),
            "scores": [_score_json(score) for score in self.scores],
            "units": self.units,
            **({"together": list(self.together)} if self.together else {}),
        }


def _score_json(score: Score) -> dict[str, object]:
    if isinstance(score, Failed):
        return {"failed": score.reason, "kind": score.kind}
    return {"total": score.total, **score.components, "scorer_version": score.version}


def reward_scalars(records: list[GroupRecord]) -> dict[str, float]:
    """Mean and deviation of the rewards, means of their components, spread inside groups, and failures.

    Failed samples are counted and excluded from all means. If all samples failed, there are no means.
    """
    scores = [score for record in records for score in record.scores]
    scored = [score for score in scores if isinstance(score, Scored) and np.isfinite(score.total)]
    scalars: dict[str, float] = {
        "samples": float(len(scores)),
        "failed_samples": float(len(scores) - len(scored)),
    }
    if not scored:
        return scalars
    totals = np.array([score.total for score in scored])
    scalars |= {"reward_mean": float(totals.mean()), "reward_std": float(totals.std())}
    spreads = [_spread(record) for record in records]
    scalars["reward_group_std"] = float(np.mean([s for s in spreads if s is not None] or [0.0]))
    for name in sorted({name for score in scored for name in score.components}):
        parts = [score.components[name] for score in scored if name in score.components]
        scalars[f"reward_{name}"] = float(np.mean(parts))
    return scalars


def _spread(record: GroupRecord) -> float | None:
    rewards = rewards_of(record.scores)
    rewards = rewards[np.isfinite(rewards)]
    return float(rewards.std()) if len(rewards) > 1 else None
