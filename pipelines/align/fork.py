"""Begins a run from a checkpoint of another run: same weights and optimizer state, other settings.

The fork has its own id, journal, curves and checkpoints, and records its parent: the run and its number of completed
updates. Its update numbers continue the parent's, so that both runs' curves share one axis. Its first checkpoint is
made from the parent's: the learner's state, the judge's student, no group in flight, and the fork's own settings. With
staleness 0 and unchanged settings, its updates equal the parent's bit for bit.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.checkpoints import Checkpoint
from roboalign_ray.pipelines.align.groups import TrainingGroups
from roboalign_ray.pipelines.align.loop import controller_of
from roboalign_ray.pipelines.align.loop_metrics import Tally
from roboalign_ray.pipelines.align.run_checkpoints import KEPT, RUN, Parent, RunCheckpoints
from roboalign_ray.pipelines.align.run_state import COUNTED, STUDENT
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule

_RUN_CHECKPOINTS = "checkpoints"  # folder in a run's folder


def open_parent(place: Path, config: JobConfig) -> Checkpoint:
    """The checkpoint that a fork begins from, verified.

    Args:
        place: folder of a checkpoint, of a run, or of a run's checkpoints; of these, the newest is used.
        config: config of the fork.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it is not of an alignment run; the settings leave no update
            to do, or need something that the parent does not have.
    """
    newest = checkpoints.latest(place / _RUN_CHECKPOINTS) or checkpoints.latest(place)
    found = checkpoints.load(newest or place)
    if Parent.read({RUN: found.metadata.get(RUN), "step": found.step}) is None:
        raise UserError(
            "is no checkpoint of an alignment run",
            where=str(found.folder),
            remedy="give RUN/checkpoints/step-N, or RUN",
        )
    _check(found, config)
    return found


def begin_fork(
    parent: Checkpoint, config: JobConfig, schedule: PromptSchedule, kept: RunCheckpoints
) -> Checkpoint:
    """Draw a fork's id, write its first checkpoint (complete or not at all), and read it back.

    Args:
        parent: the checkpoint, from `open_parent`.
        config: config of the fork.
        kept: the fork's checkpoints.
    """
    kept.keep_id(None, Parent(parent.metadata[RUN], parent.step))
    judged = parent.metadata.get("judge") if config.reward.needs_judge else None
    parts = ["state", "model", *([STUDENT] if judged and (parent.folder / STUDENT).is_dir() else [])]

    def write(folder: Path) -> None:
        for part in parts:
            shutil.copytree(parent.folder / part, folder / part)

    metadata = {
        **kept.identity(),
        "version": parent.step,
        "counts": dict.fromkeys(COUNTED, 0),
        "config": config.public(),
        "loop": _loop_state(config, schedule, parent.step),
        "judge": judged,
        "finished_groups": 0,
        "row": {},  # the fork begins with an evaluation, like every run
    }
    kept.save(lambda root: checkpoints.save(root, parent.step, write, metadata=metadata, keep=KEPT))
    return kept.of_step(parent.step)


def _loop_state(config: JobConfig, schedule: PromptSchedule, version: int) -> dict[str, Any]:
    """The `AlignmentLoop.state_dict` after `version` updates with nothing in flight."""
    cluster, groups = config.cluster, TrainingGroups(config, schedule, version)
    return {
        "groups": groups.state_dict(lambda finished: None),
        "controller": controller_of(config, cluster.rollout.workers, cluster.scorer.workers).state_dict(),
        "tally": asdict(Tally()),
    }


def _check(parent: Checkpoint, config: JobConfig) -> None:
    updates = config.alignment.updates
    if parent.step >= updates:
        raise UserError(
            f"the checkpoint has {parent.step} updates already, and the fork is to end after {updates}",
            where="alignment.updates",
            remedy=f"set it above {parent.step}: a fork counts on from its parent",
        )
    if config.reward.needs_judge and not parent.metadata.get("judge"):
        raise UserError(
            "the reward needs a judge, and the parent had none",
            where=str(parent.folder),
            remedy="fork with the parent's reward, or begin anew from its model: world_model_weights=CHECKPOINT/model",
        )
