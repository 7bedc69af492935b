"""Where an alignment run keeps its checkpoints: in its own folder, and a copy of each elsewhere if asked for.

    out/checkpoints/   the two newest; whoever resumes starts from the newest one
    alignment.checkpoints = "s3://bucket/run"   copies of them, for when the machine and its disk are gone

A run that finds a newer checkpoint there than in its folder fetches it and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roboalign_ray.foundation import checkpoints
from roboalign_ray.foundation.checkpoint_mirror import CheckpointMirror
from roboalign_ray.foundation.checkpoints import Checkpoint

KEPT = 2


class RunCheckpoints:
    """A run's checkpoints.

    Args:
        folder: where they lie.
        mirror: URI of the copies; empty for none.

    Raises:
        CheckpointError: the file system of the copies cannot be opened.
    """

    def __init__(self, folder: Path, mirror: str = "") -> None:
        self.folder = folder
        self._mirror = CheckpointMirror.at(mirror) if mirror else None

    def begun(self) -> bool:
        """Whether there is one, here or there.

        Raises:
            CheckpointError: the copies cannot be listed.
        """
        return self.newest() is not None or bool(self._copies())

    def newest(self) -> Path | None:
        """The newest here, unverified."""
        return checkpoints.latest(self.folder)

    def load(self) -> Checkpoint | None:
        """The newest here, verified; None where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        newest = self.newest()
        return None if newest is None else checkpoints.load(newest)

    def fetch(self) -> None:
        """Bring the newest copy here if it is newer than what is here.

        Raises:
            CheckpointError: it cannot be read, or is damaged.
        """
        here, copies = checkpoints.complete(self.folder), self._copies()
        if self._mirror is not None and copies and copies[-1] > max(here, default=-1):
            self._mirror.pull(copies[-1], self.folder)

    def save(self, write: Callable[[Path], Path]) -> None:
        """Keep what `write` makes in the folder that it is given, here and there.

        Raises:
            CheckpointError: the copy could not be written; the one here stands.
        """
        written = write(self.folder)
        if self._mirror is not None:
            self._mirror.push(written, KEPT)

    def _copies(self) -> list[int]:
        return self._mirror.steps() if self._mirror is not None else []
