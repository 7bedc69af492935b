"""Whether a job can run: looked at before anything starts, by `roboalign plan` and by every job, with the same checks.

    a job ──► its checks, in order: folder, episodes, weights, judges ──► room on the cluster ──► it starts
                     └─────────────── the first that fails: one line, exit code 2 ──────────┘

To add a check, write a function in `input_checks` and name it here for the jobs that need it.
"""

from __future__ import annotations

from collections.abc import Callable

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import ReportedError, UserError
from roboalign_ray.foundation.telemetry.notes import tell_once
from roboalign_ray.pipelines.capacity.cluster_nodes import cluster_of
from roboalign_ray.pipelines.capacity.placement import placement_of
from roboalign_ray.pipelines.preflight.executability import check_executability
from roboalign_ray.pipelines.preflight.inputs import (
    Preflight,
    check_action_card,
    check_action_kinds,
    check_actions,
    check_bench_weights,
    check_configured_layout,
    check_evaluation_windows,
    check_judge,
    check_judges,
    check_model_views,
    check_objective,
    check_out,
    check_prompts,
    check_report_judges,
    check_reward,
    check_rollouts,
    check_stage_tokenizer,
    check_store,
    check_student,
    check_teacher,
    check_tokenizer,
    check_trained_actions,
    check_training_start,
    check_training_windows,
    check_view,
    check_world_model,
)

__all__ = ["CHECKS", "Preflight", "cannot_be_placed", "check_ready", "find_fault"]

Check = Callable[[Preflight], None]
_EPISODES: tuple[Check, ...] = (check_store, check_view, check_action_kinds)
_MODEL: tuple[Check, ...] = (
    check_tokenizer,
    check_world_model,
    check_model_views,
    check_rollouts,
    check_actions,
    check_action_card,
)
_ALIGN: tuple[Check, ...] = (
    check_out,
    check_reward,
    *_EPISODES,
    check_prompts,
    *_MODEL,
    check_objective,
    check_judge,
    check_executability,
)

CHECKS: dict[str, tuple[Check, ...]] = {
    "pretrain": (
        check_out,
        *_EPISODES,
        check_training_windows,
        check_trained_actions,
        check_training_start,
        check_stage_tokenizer,
    ),
    "align": _ALIGN,
    "evaluate": (check_out, *_EPISODES, check_evaluation_windows, *_MODEL, check_configured_layout),
    "demo": (*_ALIGN, check_evaluation_windows, check_configured_layout, check_report_judges),
    "reproduce": (*_ALIGN, check_configured_layout, check_judges),
    "persistence": (*_ALIGN, check_evaluation_windows, check_configured_layout),
    "select": (*_EPISODES, check_prompts, *_MODEL, check_configured_layout, check_judges),
    "executability": (*_EPISODES, check_prompts, *_MODEL, check_executability),
    "bench": (*_EPISODES, check_bench_weights),
    "train": (check_out,),
    "label": (check_teacher,),
    "serve student": (check_student,),
    "serve teacher": (check_teacher,),
    "score student": (check_student,),
    "score teacher": (check_teacher,),
}

# A job's part that holds workers: how messages call it, and its name in `placement.roles_of`.
_PARTS = {
    "pretrain": ("pre-training", "train"),
    "align": ("alignment", "align"),
    "demo": ("alignment", "align"),
    "reproduce": ("alignment", "align"),
    "persistence": ("alignment", "align"),
    "train": ("training", "train"),
    "label": ("labelling", "label"),
    "serve student": ("serving", "serve student"),
    "serve teacher": ("serving", "serve teacher"),
    "score student": ("scoring", "score student"),
    "score teacher": ("scoring", "score teacher"),
}


def check_ready(job: Preflight, *, room: bool = True) -> JobConfig:
    """Every check of a job, then whether its workers find room; the job's config, with absolute paths.

    Notes of the checks are printed; they stop nothing.

    Args:
        room: whether the cluster that the job runs on is there already, or is this machine.

    Raises:
        ReportedError: the first thing that is wrong.
    """
    _run_checks(job)
    if room and job.kind in _PARTS:
        _check_room(job)
    for note in job.notes:
        tell_once(note)
    return job.config


def _run_checks(job: Preflight) -> None:
    for check in CHECKS[job.kind]:
        check(job)


def find_fault(job: Preflight) -> ReportedError | None:
    """The first thing that is wrong with a job's input; None where all is well. Does not look at the cluster.

    What stops nothing stands in the job's notes afterwards.
    """
    try:
        _run_checks(job)
    except ReportedError as error:
        return error
    return None


def cannot_be_placed(missing: str, config: JobConfig) -> UserError:
    """The error of a job that finds no room.

    Args:
        missing: part of the job and missing resource.
    """
    return UserError(
        f"the job cannot be placed: {missing}",
        where=f"profile '{config.name}'",
        remedy="change cluster.<role> with --set, or look at another cluster with 'roboalign plan'",
    )


def _check_room(job: Preflight) -> None:
    title, roles = _PARTS[job.kind]
    cluster = job.config.cluster
    view = cluster_of(cluster)
    here = cluster.address == "local"
    placement = placement_of(roles, job.config, view.nodes, here=here, open_ended=view.open_ended)
    if not placement.fits:
        raise cannot_be_placed(f"{title}: {placement.missing}", job.config)
