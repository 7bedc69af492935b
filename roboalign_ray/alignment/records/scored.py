"""Rollouts with their scores, and the few numbers of them that travel to the driver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.alignment.advantages import rewards_of
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Score, Scored
from roboalign_ray.world_model.protocol import Rollout


@dataclass(frozen=True)
class ScoredGroup:
    """A rollout and one score per sample: what the learner trains on. Codes and numbers, no pixels.

    Attributes:
        rollout: G samples of one prompt.
        scores: G, in the order of its seeds.
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
    """What the driver may know of a group: numbers, nothing that was generated.

    Attributes:
        prompt_id, seeds, scores: as in the group.
        versions: weight version per segment.
        units: generated for all samples, see `Payload.units`.
        rollout_seconds: wall time of the batch that the group was generated in.
        together: numbers of the groups that were rolled out as one batch with it, its own among them; the last bit of
            its log-probabilities rests on them. Empty where nobody numbered them.
    """

    prompt_id: str
    seeds: tuple[int, ...]
    versions: tuple[int, ...]
    scores: tuple[Score, ...]
    units: int
    rollout_seconds: float
    together: tuple[int, ...] = ()

    def as_json(self) -> dict[str, object]:
        """JSON types only, one line of the rollout journal."""
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
    """Mean and deviation of the rewards, means of their components, spread inside groups, failures.

    Failed samples are counted and take no part in any mean. With no success at all the means are left out.
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
