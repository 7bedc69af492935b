"""Online iterative distillation: trains the student further on the teacher's labels of new rollouts.

    new labels ────► DistillationSet ──┐
                                       ├──► StudentTrainer ──► calibration ──► gate ──► StudentRegistry, version v+1
    replayed pairs ────────────────────┘

RoboAlign-R1 (arXiv 2605.03821) gains .43 points of ten by it. How it mixes old and new labels is unpublished; our
settings are in `RelabelConfig` and `DistillationConfig`. If a student fails the gate, half of its step is tried, then a
quarter. If these fail too, nothing is published and the previous student stays in use.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.config.judge import JudgeConfig
from roboalign_ray.foundation.storage.files import packed_folder
from roboalign_ray.judge.data.label_store import DistillationSet, LabelledPairs, PairCache, ReplaySampler
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.student.clips import prepare_clips
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.on_the_fly_examples import FreshExamples, fresh_shares
from roboalign_ray.judge.student.registry import StudentRegistry
from roboalign_ray.judge.student.training import StudentTrainer
from roboalign_ray.judge.validation.assessment import calibrate, try_student
from roboalign_ray.judge.validation.gate import GateResult

LABELS, VERSIONS = "labels", "versions"
_START = "start"
_WARMUP = 10  # warm-up is a tenth of the steps, since a new optimizer has no gradient statistics yet
_SHARES = (1.0, 0.5, 0.25)  # shares of a relabelling's step, tried in this order until the gate is passed
_MEASURED = 50  # training figures are averaged over this number of last steps


@dataclass(frozen=True)
class Published:
    """A student that passed the gate.

    Attributes:
        version: number of the version.
        files: its folder, as returned by `packed_folder`.
        gate: its gate result.
        figures: training figures; empty for the first version and for one that was already published.
    """

    version: int
    files: Mapping[str, bytes]
    gate: GateResult
    figures: Mapping[str, float]


class Redistiller:
    """Manages the labels and the students of one run.

    Args:
        config: the judge's config.
        folder: folder of the run; `labels` and `versions` are written into it.
        start: folder of the first student.
        replay: store of judged pairs: older examples, calibration, and the gate's real clips.
        device: device for training and the gate.

    Attributes:
        passes: total number of batches through a student, in training, calibration and gate.
    """

    def __init__(
        self, config: JudgeConfig, folder: Path, start: Path, replay: Path, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, device
        self.start, self.replay = start, replay
        self.labels = DistillationSet(folder / LABELS)
        self._cache = PairCache(config.distillation.cache_gb)
        self.registry = StudentRegistry(folder / VERSIONS)
        self.passes = 0

    def begin(self) -> Published:
        """Test the run's first student on the gate and publish it.

        Raises:
            UserError: student or pairs cannot be read, or the student fails the gate.
        """
        if (known := self.registry.find(_START)) is not None:
            return self.version(known)
        student = self._counted(Student.load(self.start))
        gate = try_student(student, self.config, LabelledPairs([self.replay], self._cache))
        gate.assert_open()
        return self._publish(student, gate, _START, {})

    def version(self, number: int, files: Mapping[str, bytes] | None = None) -> Published:
        """Return a published version.

        Args:
            files: a copy of its files, used if the registry has lost it.

        Raises:
            UserError: there is no such version, or its files are damaged.
        """
        if files is not None:
            self.registry.adopt(number, files)
        about = self.registry.about(number)  # verifies the files
        files = packed_folder(self.registry.path(number))
        return Published(number, files, GateResult.from_json(about["gate"]), {})

    def known(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The existing labels among these ids: rubric points, float64 [6]."""
        wanted = set(ids)
        return {
            name: scores.astype(np.float64)
            for name, scores in zip(self.labels.ids, self.labels.scores, strict=True)
            if name in wanted
        }

    def keep(self, round_number: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Store new labels, as rows of `encode_pair`; return the number of pairs that had no label before.

        Labels of an earlier round, which occur when a run resumes from a checkpoint, are added to the newest round.
        """
        newest = int(self.labels.rounds.max()) if len(self.labels) else 1
        return self.labels.append(max(round_number, newest), rows).written

    def relabel(self, round_number: int, base: int, ids: Sequence[str]) -> Published | GateResult:
        """Train version `base` on replayed pairs and all labels, and publish the result.

        A second call for the same labels, as after a restart, returns the version published by the first.

        Args:
            round_number: number of the relabelling, from 1.
            base: version to start from.
            ids: ids of the round's samples, which identify the result.

        Returns:
            the new version: the whole step, or the largest share of it that passes the gate; if none passes, the gate
                result
            of the smallest share.
        """
        key = _key(round_number, base, ids)
        if (known := self.registry.find(key)) is not None:
            return self.version(known)
        before = self._counted(self.registry.load(base))
        trained, figures = self._train(copy.deepcopy(before), round_number)
        for share in _SHARES:
            student = between(before, trained, share)
            self._calibrate(student)
            gate = try_student(student, self.config, LabelledPairs([self.replay], self._cache))
            if gate.open:
                return self._publish(student, gate, key, {**figures, "share": share})
        return gate

    def _counted(self, student: Student) -> Student:
        """The student on the device, with a hook that counts its passes and those of its copies."""

        def passed(*_: Any) -> None:
            self.passes += 1

        student.register_forward_hook(passed)
        return student.to(self.device)

    def _train(self, student: Student, round_number: int) -> tuple[Student, dict[str, float]]:
        relabel, settings = self.config.relabel, self.config.distillation
        changes = {
            "steps": relabel.steps,
            "learning_rate": relabel.learning_rate,
            "warmup_steps": relabel.steps // _WARMUP,
            "ema_decay": 0.0,
        }
        schedule = settings.model_copy(update=changes)
        pairs = LabelledPairs([self.replay, self.labels.path], self._cache)
        train = pairs.split("train", settings.held_out_fraction)
        seed = self.config.seed + round_number
        sampler = ReplaySampler(pairs.rounds[train], settings.pairs_per_step, settings.replay_ratio, seed)
        student.calibration = None
        fresh = FreshExamples(fresh_shares(settings), pairs, seed)
        with torch.random.fork_rng():  # seeds dropout, if any
            torch.manual_seed(seed)
            trainer = StudentTrainer(student, schedule, device=self.device, keep_statistics=True)
            curves = [
                self._step(
                    trainer, fresh.batch([pairs.read(int(n)) for n in train[sampler.positions(step)]], step)
                )
                for step in range(relabel.steps)
            ]
        last = curves[-_MEASURED:]
        return trainer.result(), {name: float(np.mean([row[name] for row in last])) for name in last[0]}

    def _calibrate(self, student: Student) -> None:
        settings = self.config.distillation
        pairs = LabelledPairs([self.replay, self.labels.path], self._cache)
        calibrate(student, settings, pairs, pairs.split("held_out", settings.held_out_fraction))

    def _step(self, trainer: StudentTrainer, batch: Sequence[JudgedPair]) -> dict[str, float]:
        clips = prepare_clips([pair.frames for pair in batch], self.config.student)
        scores = np.stack([pair.scores for pair in batch])
        return trainer.step(clips, [pair.instruction for pair in batch], scores)

    def _publish(
        self, student: Student, gate: GateResult, key: str, figures: Mapping[str, float]
    ) -> Published:
        about = {"gate": gate.as_json(), "figures": dict(figures)}
        number = self.registry.publish(student, about, key=key)
        return Published(number, packed_folder(self.registry.path(number)), gate, figures)


def between(before: Student, after: Student, share: float) -> Student:
    """A student with weights interpolated between two students of the same shape: at 0 the first, at 1 the second.

    It is uncalibrated. When the step is shortened, forgotten skills return before the new ones are lost (arXiv
    2109.01903).
    """
    student, start = copy.deepcopy(after), before.state_dict()
    student.calibration = None
    with torch.no_grad():
        for name, value in student.state_dict().items():
            if value.is_floating_point():
                value.lerp_(start[name], 1 - share)
    return student


def _key(round_number: int, base: int, ids: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    return f"round-{round_number}-on-{base}-{digest}"
