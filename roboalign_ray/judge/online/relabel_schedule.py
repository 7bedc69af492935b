"""The schedule of relabelling by the teacher: a pure object without clocks, files or models.

Relabelling happens every K updates (RoboAlign-R1's online iterative distillation, arXiv 2605.03821; K is unpublished),
and earlier when an audit, which scores a few new rollouts with both judges, shows drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from roboalign_ray.config.judge import RelabelConfig
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.validation.agreement import spearman

Cause = Literal["interval", "rank", "gap"]


@dataclass(frozen=True)
class Drift:
    """The result of an audit.

    Attributes:
        rank: Spearman correlation of the totals; None if the teacher's totals are constant, so that there is no order
            to agree with. If only the student's totals are constant, it is 0.
        gap: student's mean total minus the teacher's, as a share of the range.
        samples: number of rollouts that both judges scored.
    """

    rank: float | None
    gap: float
    samples: int


@dataclass(frozen=True)
class Relabelling:
    """A relabelling that is due.

    Attributes:
        round: number of this relabelling, from 1.
        update: policy update after which it is due.
        cause: the reason.
    """

    round: int
    update: int
    cause: Cause


def measure_drift(student: np.ndarray, teacher: np.ndarray) -> Drift | None:
    """Compare two judges on the same rollouts; None if fewer than three rollouts have both scores.

    Args:
        student, teacher: float [N, 6], rubric points; rows with NaN are failures and left out.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    both = np.isfinite(student).all(axis=1) & np.isfinite(teacher).all(axis=1)
    if both.sum() < 3:
        return None
    a, b = student[both].sum(axis=1), teacher[both].sum(axis=1)
    rank = None if np.ptp(b) == 0 else 0.0 if np.ptp(a) == 0 else spearman(a, b)
    return Drift(rank, float((a - b).mean() / maxima().sum()), int(both.sum()))


class RelabelSchedule:
    """Decides when to relabel. Call `after_update` once per policy update, and `audit_due` and `audited` before it.

    Each relabelling is returned once. The count towards the next starts then, even if the relabelling fails: a teacher
    that is down is called again after the next interval, not at every update.
    """

    def __init__(self, config: RelabelConfig) -> None:
        self.config = config
        self.round, self.last_update, self.last_relabelled, self.last_audited = 0, 0, 0, 0

    def audit_due(self, update: int) -> bool:
        """Whether an audit is due after this update (counted from 1).

        No audit is due at the end of the interval, since a relabelling compares the judges anyway. An audit that cannot
        be made, for example while the teacher is busy, stays due until `audited` is called.
        """
        if not self.config.audit_every or (self.config.every and self._since(update) >= self.config.every):
            return False
        return update - max(self.last_audited, self.last_relabelled) >= self.config.audit_every

    def audited(self, update: int) -> None:
        """Record that an audit is made after this update."""
        self.last_audited = update

    def after_update(self, update: int, drift: Drift | None = None) -> Relabelling | None:
        """Whether to relabel after this update.

        Args:
            update: number of the update, from 1, ascending; a repeated call returns None, so that nothing is returned
                twice.
            drift: result of this update's audit, if there was one.

        Raises:
            ValueError: the update is before the last one.
        """
        if update < self.last_update:
            raise ValueError(f"update {update} after update {self.last_update}")
        if update == self.last_update:
            return None
        self.last_update = update
        cause = self._cause(self._since(update), drift)
        if cause is None:
            return None
        self.round, self.last_relabelled = self.round + 1, update
        return Relabelling(self.round, update, cause)

    def _since(self, update: int) -> int:
        return update - self.last_relabelled

    def _cause(self, since: int, drift: Drift | None) -> Cause | None:
        if since >= self.config.every:
            return "interval"
        if drift is None or since < self.config.least:
            return None
        if drift.rank is not None and drift.rank < self.config.lowest_rank:
            return "rank"
        return "gap" if abs(drift.gap) > self.config.largest_gap else None

    def state_dict(self) -> dict[str, int]:
        """The whole state (JSON types)."""
        return {
            "round": self.round,
            "last_update": self.last_update,
            "last_relabelled": self.last_relabelled,
            "last_audited": self.last_audited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.round = int(state["round"])
        self.last_update = int(state["last_update"])
        self.last_relabelled = int(state["last_relabelled"])
        self.last_audited = int(state.get("last_audited", 0))  # absent in checkpoints of older runs
