"""Writes and restores the content of an alignment run's checkpoint.

A checkpoint is written between two updates and holds all that the next update depends on: weights, optimizer state and
random state of every rank, the ledger, the finished groups that wait (rollouts and scores), the numbers of the groups
in flight, counts, the judge's schedule and its student, and the configuration. It appears complete or not at all. All
labels and students are in the judge's folder, where files are complete and never replaced.
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
    """Write a checkpoint of a run. The learner must be idle.

    Args:
        identity: the run's identity, from `RunCheckpoints.identity`.
        counts: counts of the whole run.
        row: scalars of the last update, if they wait for an evaluation that was interrupted.

    Raises:
        RoleLost, RoleFailure: as `Learner.ask`.
    """
    references: list[Any] = []

    def pack(finished: Finished) -> int:
        references.append(finished.reference)
        return len(references) - 1

    state = loop.state_dict(pack)
    learner, judge = loop.crew.learner, loop.crew.judge
    # Read both at the same time: while the learner works below, another student may be published.
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
    """Restore the learner, the ledger and the finished groups, and publish the learner's weights.

    Returns:
        Counts of the whole run, and the row that waits for its evaluation, as given to `save`.

    Raises:
        RoleLost, RoleFailure: as `Learner.ask`.
        CheckpointError: the checkpoint's parts do not belong together.
        UserError: the checkpoint was written with other settings.
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
    """Check a mapping of numbers that was read from a checkpoint, which is untrusted.

    Raises:
        TypeError: it is not a mapping of numbers.
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
