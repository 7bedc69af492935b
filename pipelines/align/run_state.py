"""What a checkpoint of an alignment run holds, so that the run can go on: written, and taken up again.

A checkpoint is written between two updates and holds all that the next one depends on: weights, optimizer and random
state of every rank, the accounts of the ledger, the groups that are finished and wait (their tokens and scores), which
groups were under way, how many there were, the judge's schedule and its student, and the configuration. It appears
complete or not at all. Labels and all students lie beside, in the judge's folder, each whole and never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import first_line
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.pipelines.align.groups import Finished
from roboalign_ray.pipelines.align.loop import AlignmentLoop, Crew
from roboalign_ray.pipelines.align.run_checkpoints import KEPT

STUDENT = "student"  # folder of the judge's student in a checkpoint
COUNTED = ("groups", "samples", "failed_samples", "failed_groups", "dropped_groups")


def save(
    root: Path,
    identity: Mapping[str, Any],
    loop: AlignmentLoop,
    config: JobConfig,
    counts: Mapping[str, int],
    row: Mapping | None,
) -> Path:
    """Write a checkpoint of a run whose learner rests.

    Args:
        identity: of the run, as `RunCheckpoints.identity`.
        counts: of the whole run.
        row: the last update's scalars where they wait for an evaluation that was cut short.

    Raises:
        RoleLost, RoleFailure: as `Learner.ask`.
    """
    references: list[Any] = []

    def pack(finished: Finished) -> int:
        references.append(finished.reference)
        return len(references) - 1

    state = loop.state_dict(pack)
    learner, judge = loop.crew.learner, loop.crew.judge
    # Both at one moment: while the learner is asked below, another student may be published.
    judged = None if judge is None else judge.state_dict()
    student = [] if judge is None else judge.student.reference

    def write(folder: Path) -> None:
        learner.ask("save_state", folder / "state")
        learner.ask("save", folder / "model")
        learner.ask_first("save_groups", folder / "groups", *references)
        if student:
            learner.ask_first("save_files", folder / STUDENT, *student)

    metadata = {
        **identity,
        "version": loop.version,
        "counts": dict(counts),
        "config": config.public(),
        "loop": state,
        "judge": judged,
        "finished_groups": len(references),
        "row": None if row is None else dict(row),
    }
    return checkpoints.save(root, loop.version, write, metadata=metadata, keep=KEPT)


def restore(
    found: checkpoints.Checkpoint, crew: Crew, loop: AlignmentLoop
) -> tuple[dict[str, int], dict[str, float] | None]:
    """Learner, accounts and finished groups as they were; the learner's weights are published.

    Returns:
        Counts of the whole run, and the row that waits for its evaluation, as `save` was given them.

    Raises:
        RoleLost, RoleFailure: as `Learner.ask`.
        CheckpointError: the checkpoint's parts do not belong together.
        UserError: the checkpoint is of other settings.
    """
    try:
        state, count = found.metadata["loop"], int(found.metadata["finished_groups"])
        _restore_learner(found, crew)
        loading = crew.learner.ask_first("load_groups", found.folder / "groups", count, returns=count + 1)
        references, records = loading.values, loading.answer

        def unpack(number: int) -> Finished:
            return Finished(references[number], records[number])

        loop.load_state_dict(state, unpack)
        loop.weights = crew.learner.publish()
        if crew.judge is not None:
            student = found.folder / STUDENT
            files = (
                crew.learner.ask_first("load_files", student, returns=2).values if student.is_dir() else ()
            )
            crew.judge.load_state_dict(found.metadata["judge"], files)
        counts, row = found.metadata["counts"], found.metadata["row"]
        counts = _numbers({name: counts[name] for name in COUNTED}, int)
        return counts, None if row is None else _numbers(row, (int, float))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise checkpoints.CheckpointError(
            f"its accounts cannot be taken up ({first_line(error)})",
            where=str(found.folder),
            remedy="use an earlier checkpoint, or start again in another folder",
        ) from error


def _numbers(values: Any, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """A mapping of numbers, as it was read from a checkpoint that may be anybody's.

    Raises:
        TypeError: it is something else.
    """
    held = dict(values.items())
    for name, value in held.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"'{name}' is {value!r:.40}, not a number")
    return held


def _restore_learner(found: checkpoints.Checkpoint, crew: Crew) -> None:
    versions = set(crew.learner.ask("load_state", found.folder / "state"))
    if versions != {found.step}:
        raise checkpoints.CheckpointError(
            f"the learner's state is of update {min(versions)}, the checkpoint of update {found.step}",
            where=str(found.folder),
            remedy="use an earlier checkpoint, or start again in another folder",
        )
