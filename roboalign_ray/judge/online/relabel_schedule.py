"""When the teacher labels fresh rollouts: a pure schedule without clocks, files or models.

Every K updates in any case (RoboAlign-R1's online iterative distillation, arXiv 2605.03821; K is unpublished), earlier
when an audit, a few fresh rollouts shown to both judges, finds that they have drifted apart.
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
    """What an audit found.

    Attributes:
        rank: Spearman correlation of the totals; None where the teacher told no sample from another, so that there is
            no order to agree with. A student that tells none apart where the teacher does has rank 0.
        gap: student's mean total minus the teacher's, as a share of the range.
        samples: rollouts both judges scored.
    """

    rank: float | None
    gap: float
    samples: int


@dataclass(frozen=True)
class Relabelling:
    """Relabel now.

    Attributes:
        round: number of this relabelling, from 1.
        update: policy update after which it is due.
        cause: why.
    """

    round: int
    update: int
    cause: Cause


def measure_drift(student: np.ndarray, teacher: np.ndarray) -> Drift | None:
    """Compare two judges on the same rollouts; None where fewer than three have both scores.

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
    """Says when to relabel. Call `after_update` once per policy update, `audit_due` and `audited` before it.

    A relabelling is told once; the count towards the next starts there, whatever becomes of it: a teacher that is down
    is asked again by the next interval, not at every update.
    """

    def __init__(self, config: RelabelConfig) -> None:
        self.config = config
        self.round, self.last_update, self.last_relabelled, self.last_audited = 0, 0, 0, 0

    def audit_due(self, update: int) -> bool:
        """Whether the judges should be compared after this update (counted from 1).

        None falls on the interval's end: a relabelling compares them anyway. One that cannot be made, as while the
        teacher is busy, stays due until `audited` is told of it.
        """
        if not self.config.audit_every or (self.config.every and self._since(update) >= self.config.every):
            return False
        return update - max(self.last_audited, self.last_relabelled) >= self.config.audit_every

    def audited(self, update: int) -> None:
        """The judges are being compared after this update."""
        self.last_audited = update

    def after_update(self, update: int, drift: Drift | None = None) -> Relabelling | None:
        """Whether to relabel after this update.

        Args:
            update: from 1, rising; one that was asked for already is answered None, so that nothing is told twice.
            drift: of this update's audit, where there was one.

        Raises:
            ValueError: an update before the last one.
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
        """All it knows (JSON types)."""
        return {
            "round": self.round,
            "last_update": self.last_update,
            "last_relabelled": self.last_relabelled,
            "last_audited": self.last_audited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.round = int(state["round"])
        self.last_update = int(state["last_update"])
        self.last_relabelled = int(state["last_relabelled"])
        self.last_audited = int(state.get("last_audited", 0))  # not kept by older runs
