"""Stores an alignment run's checkpoints in its own folder, and optionally a copy of each elsewhere.

    out/run.json       the run's id, drawn at its start, and a fork's parent; every checkpoint stores both
    out/checkpoints/   the two newest checkpoints; a resumed run starts from the newest complete one
    alignment.checkpoints = "s3://bucket/run"   copies of them, in case the machine and its disk are lost

If the copies hold a newer checkpoint than the folder, the run fetches it and resumes from it. A checkpoint that is
damaged, renamed or of another run is skipped: its copy or the previous checkpoint is used, and one line reports it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.checkpoint_mirror import CheckpointMirror
from roboalign_ray.foundation.storage.checkpoints import Checkpoint, CheckpointError
from roboalign_ray.foundation.storage.files import require_room, whole_file
from roboalign_ray.foundation.storage.readers import parse_json, read_bytes
from roboalign_ray.foundation.telemetry.notes import tell

KEPT = 2
RUN, PARENT, RUN_FILE = "run", "parent", "run.json"
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Parent:
    """The checkpoint of another run that a fork began from: the run's id and the number of completed updates."""

    run: str
    step: int

    @classmethod
    def read(cls, value: Any) -> Parent | None:
        """Read from JSON; None if the value is missing or invalid."""
        if not isinstance(value, dict):
            return None
        run, step = value.get(RUN), value.get("step")
        sound = isinstance(run, str) and _ID.fullmatch(run) and type(step) is int and step >= 0
        return cls(str(run), int(step or 0)) if sound else None

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {RUN: self.run, "step": self.step}


class RunCheckpoints:
    """A run's checkpoints.

    Args:
        folder: folder of the checkpoints.
        mirror: URI of the copies; empty for no copies.
        tell: called with one line for every skipped checkpoint.

    Attributes:
        run: the run's id; empty until the run begins or resumes.
        parent: the checkpoint that a fork began from.

    Raises:
        CheckpointError: the file system of the copies cannot be opened.
        UserError: the file with the run's id is damaged, or the folder is a file.
    """

    def __init__(self, folder: Path, mirror: str = "", tell: Callable[[str], None] = tell) -> None:
        self.folder, self._tell = folder, tell
        if folder.exists() and not folder.is_dir():
            raise UserError(
                "is a file, not the folder of checkpoints", where=str(folder), remedy="move it elsewhere"
            )
        self._mirror = CheckpointMirror.at(mirror) if mirror else None
        self._passed_over: list[Path] = []
        self.run, self.parent = _read_id(folder.parent / RUN_FILE)

    def begun(self) -> bool:
        """Whether there is a checkpoint, in the folder or among the copies.

        Raises:
            CheckpointError: the copies cannot be listed.
        """
        return self.newest() is not None or bool(self._copies())

    def newest(self) -> Path | None:
        """The newest checkpoint in the folder, unverified."""
        return checkpoints.latest(self.folder)

    def load(self, *, copies: bool = False) -> Checkpoint | None:
        """The newest complete checkpoint of this run. Newer ones are reported, and moved aside with the next save.

        Args:
            copies: also use the copies, for newer checkpoints and in place of damaged ones.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints, but none can be used; or the copies cannot be listed.
        """
        wrong: dict[Path, CheckpointError] = {}
        for step, attempt in self._attempts(copies):
            try:
                found = self._of_this_run(attempt())
            except CheckpointError as error:
                wrong.setdefault(self._place(step), error)
                continue
            if copies:
                self._check_copies()
            self._passed_over = [place for place in wrong if place != found.folder and place.exists()]
            if wrong:
                reasons = "; ".join(error.line() for error in wrong.values())
                self._tell(f"the run continues from {found.folder.name}: {reasons}")
            return found
        if not wrong:
            return None
        first, *others = wrong.values()
        if not others:
            raise first
        raise CheckpointError(
            f"none of the {len(wrong)} checkpoints can be used ({first.line()})",
            where=str(self.folder),
            remedy="start again in another folder",
        )

    def of_step(self, step: int) -> Checkpoint:
        """The checkpoint of a step in the folder, verified, and of this run.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, renamed, or of another run.
        """
        return self._of_this_run(checkpoints.load(self._place(step)))

    def save(self, write: Callable[[Path], Path]) -> None:
        """Store the checkpoint that `write` makes in the folder that it is given, and its copy.

        Raises:
            CheckpointError: the copy could not be written; the checkpoint in the folder is complete.
            UserError: the disk has no room for another checkpoint of the newest one's size.
        """
        self._set_aside()
        newest = self.newest()
        if newest is not None:
            require_room(self.folder, sum(path.stat().st_size for path in newest.rglob("*")))
        written = write(self.folder)
        if self._mirror is not None:
            self._mirror.push(written, KEPT)

    def keep_id(self, found: Checkpoint | None, parent: Parent | None = None) -> None:
        """Write the run's id into its folder. A new run draws an id.

        Args:
            found: the checkpoint that the run resumes from, as returned by `load`.
            parent: the checkpoint that a fork begins from.
        """
        if found is None:
            self.run, self.parent = uuid.uuid4().hex, parent
        path = self.folder.parent / RUN_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft:
            draft.write_text(json.dumps(self.identity()) + "\n", encoding="utf-8")

    def identity(self) -> dict[str, Any]:
        """The run's id, and its parent if it has one; JSON types."""
        return {RUN: self.run} | ({PARENT: self.parent.as_json()} if self.parent else {})

    def _attempts(self, with_copies: bool) -> Iterator[tuple[int, Callable[[], Checkpoint]]]:
        """Ways to load a checkpoint, newest step first; of one step, the folder's checkpoint before its copy."""
        here, copies = checkpoints.complete(self.folder), self._copies() if with_copies else []
        for step in sorted({*here, *copies}, reverse=True):
            if step in here:
                yield step, partial(checkpoints.load, here[step])
            if step in copies:
                yield step, partial(self._fetched, step)

    def _fetched(self, step: int) -> Checkpoint:
        assert self._mirror is not None
        return checkpoints.load(self._mirror.pull(step, self.folder, self._check_run))

    def _of_this_run(self, found: Checkpoint) -> Checkpoint:
        """Check that a checkpoint is of this run. A folder without an id takes over the checkpoint's id.

        Raises:
            CheckpointError: the checkpoint is of another run.
        """
        self._check_run(found.metadata, str(found.folder))
        self.run, self.parent = found.metadata[RUN], Parent.read(found.metadata.get(PARENT))
        return found

    def _check_run(self, metadata: Mapping[str, Any], where: str) -> None:
        run = metadata.get(RUN)
        if not isinstance(run, str) or not _ID.fullmatch(run):
            raise CheckpointError(
                "names no run: an older version wrote it",
                where=where,
                remedy="start again in another folder",
            )
        if self.run and run != self.run:
            raise CheckpointError(
                "is a checkpoint of another run",
                where=where,
                remedy="move it back to its own run's folder, or choose another address for copies",
            )

    def _check_copies(self) -> None:
        """Check that the copies are of this run: copies of two runs in one place would replace each other.

        Raises:
            CheckpointError: some copies are of another run.
        """
        for step in self._copies():
            assert self._mirror is not None
            try:
                metadata = self._mirror.manifest(step)["metadata"]
            except CheckpointError:
                continue  # a damaged copy is never fetched
            if metadata.get(RUN) != self.run:
                raise CheckpointError(
                    f"holds a copy of another run's checkpoint, of step {step}",
                    where="alignment.checkpoints",
                    remedy="choose another address",
                )

    def _set_aside(self) -> None:
        """Rename skipped checkpoints, so that no run resumes from them."""
        for place in self._passed_over:
            aside = place.with_name(f"unusable-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            if place.exists():
                place.rename(aside)
        self._passed_over = []

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _copies(self) -> list[int]:
        return self._mirror.steps() if self._mirror is not None else []


def _read_id(path: Path) -> tuple[str, Parent | None]:
    """The id in a run's folder (empty if there is none), and the run's parent.

    Raises:
        UserError: the file is not valid.
    """
    if not os.path.lexists(path):
        return "", None
    try:
        held = parse_json(read_bytes(path, "run's id", most_bytes=4096), where=str(path))
        run, parent = held[RUN], Parent.read(held.get(PARENT))
        if isinstance(run, str) and _ID.fullmatch(run) and (parent or PARENT not in held):
            return run, parent
    except (UserError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        "does not hold a run's id",
        where=str(path),
        remedy="remove it: the newest checkpoint's run is then taken up",
    )
