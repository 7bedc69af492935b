"""What an alignment run leaves on disk so that it can go on: checkpoints, and the journal of its groups.

A checkpoint is written between two updates and holds all that the next one depends on: weights, optimizer and random
state of every rank, the accounts of the ledger, the groups that are finished and wait (their tokens and scores), which
groups were under way, how many there were, the judge's schedule and its student, and the configuration. It appears
complete or not at all. Labels and all students lie beside, in the judge's folder, each whole and never replaced, and
with which settings they were made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import pick, read_lines, read_object
from roboalign_ray.pipelines.align.groups import Finished
from roboalign_ray.pipelines.align.loop import AlignmentLoop, Crew, Update
from roboalign_ray.pipelines.align.run_checkpoints import KEPT, RUN

TOLD = "told"  # in the judge's events: after which update each was written down
_STUDENT = "student"
SETTINGS = "settings.json"
COUNTED = ("groups", "samples", "failed_samples", "failed_groups", "dropped_groups")
_MAY_DIFFER = {
    "name",
    "output",
    "cluster",
    "serving",
    "evaluation",
    "telemetry",
}  # between a run and the one that resumes it
_MAY_DIFFER_IN = {
    "alignment": {"updates", "checkpoint_every", "checkpoints"},
    "asynchrony": {"concurrency", "tries", "backpressure", "liveness", "workload"},
    "teacher": {"training", "small", "labelling", "engine", "server"},
}


def save(
    root: Path,
    run: str,
    loop: AlignmentLoop,
    config: JobConfig,
    counts: Mapping[str, int],
    row: Mapping | None,
) -> Path:
    """Write a checkpoint of a run whose learner rests.

    Args:
        run: the run's id.
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
            learner.ask_first("save_files", folder / _STUDENT, *student)

    metadata = {
        RUN: run,
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
            student = found.folder / _STUDENT
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


def check_same_job(before: Any, config: JobConfig, where: str) -> None:
    """A run goes on with the settings that it began with; its length and what its result does not rest on may change.

    Args:
        before: settings as JSON, as somebody wrote them down.

    Raises:
        UserError: something else differs, or they are no settings.
    """
    if not isinstance(before, dict):
        raise UserError("names no settings of a job", where=where, remedy="start in another folder")
    unasked = set() if config.judge.relabel.teacher == "vlm" else {"teacher"}
    check_settings(before, config, where, _MAY_DIFFER | unasked, _MAY_DIFFER_IN)


def keep_settings(
    folder: Path,
    config: JobConfig,
    check: Callable[[Mapping[str, Any], JobConfig, str], None],
    made: Sequence[Path],
) -> None:
    """What is made in a folder is made with the settings written down there, but for those that may change.

    Args:
        check: told the settings before, these, and where; as `check_same_job`.
        made: what there is already; nothing is held to anything where there is none.

    Raises:
        UserError: they are others, or nobody wrote them down.
    """
    path = folder / SETTINGS
    if made:
        if not path.is_file():
            raise UserError(
                f"holds what was made with unknown settings: there is no {SETTINGS}",
                where=str(folder),
                remedy="start in another folder",
            )
        check(read_object(path, "settings of the run"), config, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        draft.write_text(json.dumps(config.public(), indent=2) + "\n", encoding="utf-8")


def check_settings(
    before: Mapping[str, Any],
    config: JobConfig,
    where: str,
    free_sections: Set[str],
    free_in: Mapping[str, Set[str]],
) -> None:
    """Compare settings but for sections, and keys of sections, that may differ.

    Raises:
        UserError: others differ.
    """
    now = config.public()
    for section in sorted(now.keys() - free_sections):
        old, new = before.get(section), now[section]
        if isinstance(old, dict) and section in free_in:
            free = free_in[section]
            old, new = ({k: v for k, v in part.items() if k not in free} for part in (old, new))
        if old != new:
            raise UserError(
                f"the run began with other settings in '{section}'",
                where=where,
                remedy="resume with the same ones, or start in another folder",
            )


def write_journal(path: Path, update: Update) -> None:
    """One line per trained group, with all that made it, and one per attempt that failed."""
    lines = [{"group": number, **finished.record.as_json()} for number, finished in update.groups]
    lines += [
        {
            "group": ticket.number,
            "prompt": ticket.name.prompt_id,
            "attempt": ticket.attempt,
            "failed": failed.reason,
            "kind": failed.kind,
        }
        for ticket, failed in update.failures
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"update": update.index, **line}) + "\n" for line in lines)


def write_events(path: Path, update: int, events: Sequence[Mapping[str, Any]]) -> None:
    """One line per thing that happened to the judge: the update it is about, and the one after which it was told."""
    if events:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"update": update, **event, TOLD: update}) + "\n" for event in events)


def cut_journal(path: Path, updates_done: int, key: str = "update") -> None:
    """Drop what was written after the checkpoint, and a torn last line.

    Args:
        key: of a line's update.
    """
    if not path.exists():
        return
    kept = []
    for line in read_lines(path, "journal line"):
        written = key if key in line else "update"
        if written in line and pick(line, written, int, where=str(path), what="journal line") < updates_done:
            kept.append(json.dumps(line) + "\n")
    with whole_file(path) as draft:  # a full disk, or an end here, must not cost the lines that are kept
        draft.write_text("".join(kept), encoding="utf-8")
