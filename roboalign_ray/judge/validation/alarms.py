"""Alarms while a judge rewards: a component that rises while the teacher's score falls, motion that dies, a gap.

Pure objects: they are shown audits, hold a short history, and say what is wrong. What follows is the job's to decide.
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
    """The same fresh rollouts seen by student and teacher.

    Attributes:
        update: policy update.
        student, teacher: float [N, 6], rubric points; rows with NaN are failures and left out.
        motion: how much the rollouts move, as a share of what real clips do (`motion_share`); None where not measured.
        version: of the student.
    """

    update: int
    student: np.ndarray
    teacher: np.ndarray
    motion: float | None = None
    version: int = 0


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at.

    Attributes:
        kind: "hacking", "motion" or "gap".
        update: policy update of the audit that raised it.
        message: one line.
    """

    kind: Kind
    update: int
    message: str


def motion_share(generated: np.ndarray, real: np.ndarray) -> float:
    """Mean absolute change from frame to frame of generated clips over that of real ones; NaN where nothing real moves.

    Args:
        generated, real: uint8 [..., T, H, W, 3], T of at least two.
    """
    moved, reference = _motion(generated), _motion(real)
    return moved / reference if reference > 0 else float("nan")


class RewardAlarms:
    """Watches audits.

    Args:
        config: bars and window.
    """

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        # Shares per audit: "student" [6], "teacher" a number; "version" of the student.
        self._history: list[dict[str, Any]] = []

    def observe(self, audit: Audit) -> tuple[Alarm, ...]:
        """What this audit gives reason to say; an audit without a rollout that both scored tells only of motion."""
        student, teacher = np.asarray(audit.student, np.float64), np.asarray(audit.teacher, np.float64)
        both = np.isfinite(student).all(axis=1) & np.isfinite(teacher).all(axis=1)
        found = self._motion(audit)
        if not both.any():
            return found
        told, truth = student[both].mean(axis=0), teacher[both].mean(axis=0)
        shares = {"student": normalise(told).tolist(), "teacher": float(truth.sum() / maxima().sum())}
        self._history.append({**shares, "version": audit.version})
        self._history = self._history[-self.config.hacking_window :]
        return (*found, *self._gap(audit.update, told, truth), *self._hacking(audit.update))

    def state_dict(self) -> dict[str, Any]:
        """The history (JSON types)."""
        return {"history": [dict(entry) for entry in self._history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._history = [dict(entry) for entry in state["history"]]

    def _motion(self, audit: Audit) -> tuple[Alarm, ...]:
        if audit.motion is None or not audit.motion < self.config.motion_floor:
            return ()
        message = (
            f"rollouts move {audit.motion:.0%} as much as real clips (floor {self.config.motion_floor:.0%})"
        )
        return (Alarm("motion", audit.update, message),)

    def _gap(self, update: int, told: np.ndarray, truth: np.ndarray) -> tuple[Alarm, ...]:
        gap = float((told - truth).sum() / maxima().sum())
        if gap <= self.config.student_teacher_gap:
            return ()
        message = f"the student's mean total is {told.sum():.2f}, the teacher's {truth.sum():.2f}"
        return (Alarm("gap", update, message),)

    def _hacking(self, update: int) -> tuple[Alarm, ...]:
        """Second half of the window against the first: halves' means, so that one odd audit does not decide."""
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
        # Another student's scores may rise for what it learned: that is no reason to be silent, but to say so.
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
