"""Alarms during alignment: a component that rises while the teacher's score falls, a loss of motion, or a score gap.

Pure objects: they receive audits, keep a short history, and return alarms. The job decides how to react.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from roboalign_ray.config.judge import GateConfig
from roboalign_ray.judge.rubric import maxima, names, normalise

Kind = Literal["hacking", "motion", "gap"]


@dataclass(frozen=True)
class Audit:
    """The scores of student and teacher for the same new rollouts.

    Attributes:
        update: policy update.
        student, teacher: float [N, 6], rubric points; rows with NaN are failures and left out.
        motion: motion of the rollouts as a share of that of real clips (`motion_share`); None if not measured.
        version: version of the student.
    """

    update: int
    student: np.ndarray
    teacher: np.ndarray
    motion: float | None = None
    version: int = 0


@dataclass(frozen=True)
class Alarm:
    """A warning that a person should check.

    Attributes:
        kind: "hacking", "motion" or "gap".
        update: policy update of the audit that raised it.
        message: one line.
    """

    kind: Kind
    update: int
    message: str


def motion_share(generated: np.ndarray, real: np.ndarray) -> float:
    """Mean absolute frame-to-frame change of generated clips divided by that of real clips; NaN if nothing real moves.

    Args:
        generated, real: uint8 [..., T, H, W, 3], T at least two.
    """
    moved, reference = _motion(generated), _motion(real)
    return moved / reference if reference > 0 else float("nan")


class RewardAlarms:
    """Raises alarms from audits.

    Args:
        config: thresholds and window.
    """

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        # Per audit: shares of "student" [6] and "teacher" (one number), and the student's "version".
        self._history: list[dict[str, Any]] = []

    def observe(self, audit: Audit) -> tuple[Alarm, ...]:
        """The alarms that this audit raises.

        An audit without a rollout that both judges scored can only raise the motion alarm.
        """
        student, teacher = np.asarray(audit.student, np.float64), np.asarray(audit.teacher, np.float64)
        both = np.isfinite(student).all(axis=1) & np.isfinite(teacher).all(axis=1)
        found = self._motion(audit)
        if not both.any():
            return found
        given, truth = student[both].mean(axis=0), teacher[both].mean(axis=0)
        shares = {"student": normalise(given).tolist(), "teacher": float(truth.sum() / maxima().sum())}
        self._history.append({**shares, "version": audit.version})
        self._history = self._history[-self.config.hacking_window :]
        return (*found, *self._gap(audit.update, given, truth), *self._hacking(audit.update))

    def state_dict(self) -> dict[str, Any]:
        """The history (JSON types)."""
        return {"history": [dict(entry) for entry in self._history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._history = [dict(entry) for entry in state["history"]]

    def _motion(self, audit: Audit) -> tuple[Alarm, ...]:
        if audit.motion is None or not audit.motion < self.config.motion_floor:
            return ()
        message = (
            f"rollouts move {audit.motion:.0%} as much as real clips (floor {self.config.motion_floor:.0%})"
        )
        return (Alarm("motion", audit.update, message),)

    def _gap(self, update: int, given: np.ndarray, truth: np.ndarray) -> tuple[Alarm, ...]:
        gap = float((given - truth).sum() / maxima().sum())
        if gap <= self.config.student_teacher_gap:
            return ()
        message = f"the student's mean total is {given.sum():.2f}, the teacher's {truth.sum():.2f}"
        return (Alarm("gap", update, message),)

    def _hacking(self, update: int) -> tuple[Alarm, ...]:
        """Compare the means of the window's two halves, so that a single outlier does not decide."""
        window, least = self.config.hacking_window, self.config.hacking_change
        if len(self._history) < window:
            return ()
        half = window // 2
        student = np.array([entry["student"] for entry in self._history])
        teacher = np.array([entry["teacher"] for entry in self._history])
        fall = teacher[:half].mean() - teacher[-half:].mean()
        rises = student[-half:].mean(axis=0) - student[:half].mean(axis=0)
        if fall < least:
            return ()
        # The scores of a new student may rise because of what it learned: the alarm is still raised, with a note.
        versions = {entry.get("version", 0) for entry in self._history}
        besides = "; the student was relabelled in between" if len(versions) > 1 else ""
        return tuple(
            Alarm(
                "hacking",
                update,
                f"{name} rose by {rise:.1%} while the teacher's total fell by {fall:.1%}{besides}",
            )
            for name, rise in zip(names(), rises, strict=True)
            if rise >= least
        )


def _motion(clips: np.ndarray) -> float:
    return float(np.abs(np.diff(clips.astype(np.int16), axis=-4)).mean())
