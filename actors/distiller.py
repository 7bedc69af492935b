"""The distiller actor: stores the labels and students of an alignment run, and trains the student further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.config import JobConfig
from roboalign_ray.judge.online.redistillation import Published, Redistiller
from roboalign_ray.judge.validation.gate import GateResult


@dataclass(frozen=True)
class StudentRecord:
    """The numbers of a student, for the driver.

    Attributes:
        version: version of the student; None if it was not published.
        gate: result of the reward gate.
        figures: figures of its training.
    """

    version: int | None
    gate: GateResult
    figures: Mapping[str, float]


class DistillerActor:
    """Trains, checks and publishes students.

    Args:
        config: the job's `judge` section is used.
        folder: folder of the run's labels and versions.
        start: folder of the first student.
        replay: store of judged pairs.
        threads: torch threads.
    """

    def __init__(self, config: JobConfig, folder: Path, start: Path, replay: Path, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.config, self.folders = config, (folder, start, replay)

    @cached_property
    def _redistiller(self) -> Redistiller:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Redistiller(self.config.judge, *self.folders, device)

    def ready(self) -> None:
        """Open the labels.

        Raises:
            UserError: the labels cannot be read.
        """
        _ = self._redistiller

    def beat(self) -> int:
        """A number that grows while a student is trained or checked. Called from another thread."""
        return self._redistiller.passes if "_redistiller" in self.__dict__ else 0

    def begin(self) -> tuple[Mapping[str, bytes], StudentRecord]:
        """Files and record of the first version.

        Raises:
            UserError: the student or the pairs cannot be read, or the student fails the gate.
        """
        return _files_and_record(self._redistiller.begin())

    def version(
        self, number: int, files: Mapping[str, bytes] | None = None
    ) -> tuple[Mapping[str, bytes], StudentRecord]:
        """Files and record of a published version.

        Args:
            files: copy of the files in a checkpoint, used if the run's folder has none.

        Raises:
            UserError: there is no version of that number, or the files are of another version.
        """
        return _files_and_record(self._redistiller.version(number, files))

    def known(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Existing labels of these ids: rubric points, float64 [6]."""
        return self._redistiller.known(ids)

    def keep(self, round_number: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add fresh labels to the set. Return how many were new."""
        return self._redistiller.keep(round_number, rows)

    def relabel(
        self, round_number: int, base: int, ids: Sequence[str]
    ) -> tuple[Mapping[str, bytes], StudentRecord]:
        """Train the student on the stored labels. Return its files and its record; no files if it failed the gate."""
        return _files_and_record(self._redistiller.relabel(round_number, base, ids))


def _files_and_record(outcome: Published | GateResult) -> tuple[Mapping[str, bytes], StudentRecord]:
    if isinstance(outcome, GateResult):
        return {}, StudentRecord(None, outcome, {})
    return outcome.files, StudentRecord(outcome.version, outcome.gate, outcome.figures)
