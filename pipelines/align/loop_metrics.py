"""Figures of the alignment loop: each update's figures, and those that the back-pressure controller uses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from roboalign_ray.pipelines.cluster.worker_pool import Call
from roboalign_ray.world_model.protocol import RolloutReport

_RECENT = 0.2  # weight of the newest call in the controller's mean service times


@dataclass
class Tally:
    """Figures of rollouts and scores since the last update.

    Attributes:
        rollout_s, scorer_s: seconds of work, added over workers.
        peak_sequence, cache_bytes: maximum over calls, see `RolloutReport`.
    """

    rollout_s: float = 0.0
    scorer_s: float = 0.0
    peak_sequence: int = 0
    cache_bytes: int = 0

    def rolled(self, call: Call, report: RolloutReport) -> None:
        """Add a call of training groups."""
        self.rollout_s += call.seconds
        self.peak_sequence = max(self.peak_sequence, report.peak_sequence)
        self.cache_bytes = max(self.cache_bytes, report.cache_bytes)

    def scalars(self, units: int, rollout_workers: int, scorer_workers: int) -> dict[str, float]:
        """Figures by the names of their curves; seconds are means over the role's workers, `units` those trained on."""
        seconds = self.rollout_s / max(1, rollout_workers)
        return {
            "seconds_rollout": seconds,
            "rollout_units": float(units),
            "rollout_units_per_second": units / seconds if seconds else 0.0,
            "peak_sequence": float(self.peak_sequence),
            "cache_bytes": float(self.cache_bytes),
            "seconds_scorer": self.scorer_s / max(1, scorer_workers),
        }


@dataclass
class Pace:
    """Recent mean seconds per group, by role."""

    seconds: dict[str, float] = field(default_factory=dict)

    def learn(self, role: str, seconds: float) -> None:
        """Add a duration."""
        known = self.seconds.get(role, seconds)
        self.seconds[role] = known + _RECENT * (seconds - known)

    def of(self, role: str) -> float:
        """The mean; 0 if there is none yet."""
        return self.seconds.get(role, 0.0)


def ages(before: Counter[int], after: Counter[int]) -> dict[str, float]:
    """Mean, maximum and shares by age, in versions, of the groups that were trained between two counts."""
    new = after - before
    total = sum(new.values())
    if not total:
        return {}
    return {
        "staleness_mean": sum(age * count for age, count in new.items()) / total,
        "staleness_max": float(max(new)),
        **{f"staleness/{age}": count / total for age, count in sorted(new.items())},
    }
