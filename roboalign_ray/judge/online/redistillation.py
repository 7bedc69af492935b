"""Online iterative distillation: the student trained further on the teacher's labels of fresh rollouts.

    fresh labels ──► DistillationSet ──┐
                                       ├──► StudentTrainer ──► calibration ──► gate ──► StudentRegistry, version v+1
    replayed pairs ────────────────────┘

RoboAlign-R1 (arXiv 2605.03821) gains .43 points of ten by it; how old and new are mixed is unpublished, ours stands in
`RelabelConfig` and `DistillationConfig`. Where a student fails the gate, half of its step is tried, then a quarter; if
they fail too, nothing is published and the one before goes on.
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
_WARMUP = 10  # a fresh optimizer's first steps are blind: a tenth of them is taken with care
_SHARES = (1.0, 0.5, 0.25)  # of a relabelling's step, tried in this order until the gate stays open
_MEASURED = 50  # last steps over which a training's figures are averaged


@dataclass(frozen=True)
class Published:
    """A student that may reward.

    Attributes:
        version: its number.
        files: its folder, as `packed_folder` gives it.
        gate: what it showed.
        figures: of its training; empty for the first version, and for one that had been published before.
    """

    version: int
    files: Mapping[str, bytes]
    gate: GateResult
    figures: Mapping[str, float]


class Redistiller:
    """Keeps the labels and the students of one run.

    Args:
        config: of the judge.
        folder: of the run; gets `labels` and `versions`.
        start: folder of the student to begin with.
        replay: store of judged pairs: older examples, calibration, and the gate's real clips.
        device: to train and try on.

    Attributes:
        passes: batches that a student was shown, ever, in training, calibration and trial.
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
        """The first version: the student that the run begins with, tried and published.

        Raises:
            UserError: student or pairs cannot be read, or it fails the gate.
        """
        if (known := self.registry.find(_START)) is not None:
            return self.version(known)
        student = self._counted(Student.load(self.start))
        gate = try_student(student, self.config, LabelledPairs([self.replay], self._cache))
        gate.assert_open()
        return self._publish(student, gate, _START, {})

    def version(self, number: int, files: Mapping[str, bytes] | None = None) -> Published:
        """One that was published.

        Args:
            files: those that were kept of it elsewhere, for where the registry has lost it.

        Raises:
            UserError: there is none of that number, or its files are damaged.
        """
        if files is not None:
            self.registry.adopt(number, files)
        about = self.registry.about(number)  # verifies the files
        files = packed_folder(self.registry.path(number))
        return Published(number, files, GateResult.from_json(about["gate"]), {})

    def known(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """The labels of those that have one already: rubric points, float64 [6]."""
        wanted = set(ids)
        return {
            name: scores.astype(np.float64)
            for name, scores in zip(self.labels.ids, self.labels.scores, strict=True)
            if name in wanted
        }

    def keep(self, round_number: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add fresh labels, as `encode_pair` makes them; returns how many had none before.

        A round before the newest one, which a run that was set back comes through again, adds to the newest.
        """
        newest = int(self.labels.rounds.max()) if len(self.labels) else 1
        return self.labels.append(max(round_number, newest), rows).written

    def relabel(self, round_number: int, base: int, ids: Sequence[str]) -> Published | GateResult:
        """Train version `base` on replayed pairs and all labels; publish what comes of it.

        Asked a second time for the same labels, as after a restart, it answers with what was published then.

        Args:
            round_number: of the relabelling, from 1.
            base: version to go on from.
            ids: of the round's samples, which name what comes of it.

        Returns:
            the new version: all of what was learned, or the largest share of it with which the gate stays open; or,
            where none does, what the smallest showed there.
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
        """On the device, where each of its passes counts, and each of its copies'."""

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
        with torch.random.fork_rng():  # dropout, where there is some
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
    """A student on the line between two of one shape, at 0 the first and at 1 the second; uncalibrated.

    What further training forgets comes back sooner on the way back than what it learned goes (arXiv 2109.01903).
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
