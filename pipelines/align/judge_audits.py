"""Events and figures of an alignment run's judge, and audits, which compare student and teacher.

An audit compares both judges' scores of the same samples: their drift, and alarms if the reward is being gamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roboalign_ray.actors.annotator import AnnotationRecord
from roboalign_ray.config.judge import GateConfig
from roboalign_ray.judge.online.relabel_schedule import Drift, measure_drift
from roboalign_ray.judge.rubric import names
from roboalign_ray.judge.validation.alarms import Audit, RewardAlarms
from roboalign_ray.pipelines.align.sample_selection import Sample

Event = dict[str, Any]
Found = dict[str, AnnotationRecord]
"""The teacher's scores by sample id."""


class JudgeReport:
    """Events and figures since they were last taken.

    Attributes:
        events: in order, JSON types.
        scalars: figures by the names of their curves.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.scalars: dict[str, float] = {}

    def clear(self) -> None:
        """Clear events and figures."""
        self.events, self.scalars = [], {}

    def event(self, name: str, **about: Any) -> None:
        """Add an event."""
        self.events.append({"event": name, **about})

    def count(self, name: str, number: int) -> None:
        """Add a number to a counter."""
        self.scalars[name] = self.scalars.get(name, 0.0) + number

    def take_scalars(self) -> dict[str, float]:
        """Return the figures and clear them."""
        taken, self.scalars = self.scalars, {}
        return taken

    def take_events(self) -> list[Event]:
        """Return the events and clear them."""
        taken, self.events = self.events, []
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Figures and events that were not taken yet, JSON types."""
        return {"events": list(self.events), "scalars": dict(self.scalars)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.events, self.scalars = list(state.get("events", ())), dict(state.get("scalars", {}))


class JudgeAudits:
    """Compares student and teacher, and detects signs of reward gaming.

    Args:
        gate: thresholds of the alarms.
        report: receives figures, audits and alarms.
    """

    def __init__(self, gate: GateConfig, report: JudgeReport) -> None:
        self._gate, self._report = gate, report
        self.clear()

    def clear(self) -> None:
        """Clear all audits."""
        self._alarms = RewardAlarms(self._gate)

    def state_dict(self) -> dict[str, Any]:
        """State of the alarms, JSON types."""
        return self._alarms.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self._alarms.load_state_dict(state)

    def measure(self, update: int, samples: Sequence[Sample], found: Found, prefix: str) -> Drift | None:
        """Compare both judges' scores of the same samples: figures, and alarms for training samples.

        Args:
            update: number of the update, from 1.
            samples: samples that the student scored.
            found: the teacher's scores of all of them.
            prefix: prefix of the figures' names: "judge" for training samples, "held_out" for others.

        Returns:
            None if there are no samples, or none that both judges could score.
        """
        if not samples:
            return None
        records = [found[sample.pair_id] for sample in samples]
        student = np.stack([sample.student for sample in samples])
        teacher = np.stack([record.scores for record in records])
        motions = np.array([record.motion for record in records])
        version = max(sample.version for sample in samples)
        motion = float(np.nanmean(motions)) if np.isfinite(motions).any() else None
        drift = measure_drift(student, teacher)
        figures = {**_means(student, f"{prefix}/student"), **_means(teacher, f"{prefix}/teacher")}
        if motion is not None:
            figures[f"{prefix}/motion"] = motion
        if drift is not None:
            figures[f"{prefix}/gap"] = drift.gap
            if drift.rank is not None:
                figures[f"{prefix}/rank"] = drift.rank
        self._report.scalars |= figures
        self._report.event("audit", of=prefix, update=update, version=version, **figures)
        if prefix == "judge":
            for alarm in self._alarms.observe(Audit(update, student, teacher, motion, version)):
                self._report.count("judge/alarms", 1)
                self._report.event("alarm", kind=alarm.kind, update=alarm.update, message=alarm.message)
        return drift


def _means(scores: np.ndarray, prefix: str) -> dict[str, float]:
    """Mean total and mean per dimension over scored samples."""
    known = scores[np.isfinite(scores).all(axis=1)]
    if not len(known):
        return {}
    means = known.mean(axis=0)
    return {
        f"{prefix}_total": float(means.sum()),
        **{f"{prefix}/{name}": float(value) for name, value in zip(names(), means, strict=True)},
    }
