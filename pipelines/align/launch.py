"""Starts the workers of an alignment job, and replaces a lost learner.

A judge needs a distiller, which stores its students, and annotators if a teacher labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.pipelines.align.learner import Learner
from roboalign_ray.pipelines.align.loop import Crew
from roboalign_ray.pipelines.align.online_judge import OnlineJudge
from roboalign_ray.pipelines.cluster.runtime import WorkerLost, role_threads, wait
from roboalign_ray.pipelines.cluster.weight_folders import (
    replay_folder,
    student_folder,
    tokenizer_folder,
    world_model_folder,
)
from roboalign_ray.pipelines.cluster.worker_pool import WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce

JUDGE = "judge"  # folder of labels, students and the judge's events


@contextmanager
def crew_of(config: JobConfig, out: Path) -> Iterator[Crew]:
    """The job's workers, loaded. They end with the block.

    Args:
        config: the job.
        out: run directory; it contains the judge's labels and students.

    Raises:
        UserError: bad input found while loading.
        RoleFailure: a worker did not start.
    """
    workforce = Workforce([], config.asynchrony.liveness)
    try:
        yield _hire(config, out, workforce)
    finally:
        workforce.close()


def replace_learner(config: JobConfig, crew: Crew) -> None:
    """End all ranks and start new ones without state. Drop the callbacks of pending calls.

    Raises:
        RoleLost: a rank was lost while it loaded.
        RoleFailure: the ranks did not start for another reason.
    """
    crew.workforce.close_pool(crew.learner.pool)
    crew.workforce.drop_callbacks()
    pool = _learners(config)
    crew.workforce.pools.append(pool)
    crew.learner = Learner(crew.workforce, pool, crew.learner.incarnation + 1)
    address = crew.learner.ask_first("address").answer
    crew.learner.ask("join", address)
    pool.mark_up()


def _hire(config: JobConfig, out: Path, workforce: Workforce) -> Crew:
    """Load all roles at once; their loading times overlap."""
    from roboalign_ray.actors.rollout import RolloutActor
    from roboalign_ray.actors.scorer import ScorerActor

    cluster = config.cluster
    models = {"world_model": world_model_folder(config), "tokenizer": tokenizer_folder(config)}
    common = {**models, "episodes": config.episodes}
    rollout: dict[str, Any] = {
        **common,
        "rollout": config.rollout,
        "threads": role_threads(cluster.rollout),
    }
    if config.rollout.branching.chooses:
        rollout["reward"] = config.reward
    scorer: dict[str, Any] = {**common, "reward": config.reward, "threads": role_threads(cluster.scorer)}
    rollouts = WorkerPool("rollout", RolloutActor, cluster.rollout, [rollout] * cluster.rollout.workers)
    workforce.pools.append(rollouts)
    scorers = WorkerPool("scorer", ScorerActor, cluster.scorer, [scorer] * cluster.scorer.workers)
    workforce.pools.append(scorers)
    loading = [rollouts.load(), scorers.load()]
    judge = _judge(config, out, workforce, loading) if config.reward.needs_judge else None
    learners = joined(partial(_learners, config), workforce)
    for loaded in loading:
        loaded()
    return Crew(workforce, rollouts, scorers, Learner(workforce, learners), judge)


def _judge(
    config: JobConfig, out: Path, workforce: Workforce, loading: list[Callable[[], None]]
) -> OnlineJudge:
    """The distiller, and the annotators if a teacher labels. Functions that wait for them are added to `loading`."""
    from roboalign_ray.actors.annotator import AnnotatorActor
    from roboalign_ray.actors.distiller import DistillerActor

    cluster, annotators = config.cluster, None
    if config.judge.relabel.teacher != "none":
        arguments = {
            "config": config,
            "world_model": world_model_folder(config),
            "tokenizer": tokenizer_folder(config),
            "threads": role_threads(cluster.teacher),
        }
        annotators = WorkerPool(
            "annotator", AnnotatorActor, cluster.teacher, [arguments] * cluster.teacher.workers
        )
        workforce.pools.append(annotators)
    distiller: dict[str, Any] = {
        "config": config,
        "folder": out / JUDGE,
        "start": student_folder(config),
        "replay": replay_folder(config),
        "threads": role_threads(cluster.distiller),
    }
    distillers = WorkerPool("distiller", DistillerActor, cluster.distiller, [distiller])
    workforce.pools.append(distillers)
    loading += [pool.load() for pool in (annotators, distillers) if pool is not None]
    return OnlineJudge(config, workforce, annotators, distillers)


def _learners(config: JobConfig) -> WorkerPool:
    from roboalign_ray.actors.learner import LearnerActor

    role = config.cluster.learner
    arguments = [
        {
            "world_model": world_model_folder(config),
            "config": config.alignment,
            "off_policy": config.asynchrony.off_policy,
            "travel": config.asynchrony.weights,
            "rank": rank,
            "ranks": role.workers,
            "threads": role_threads(role),
            "seed": config.seed,
        }
        for rank in range(role.workers)
    ]
    return WorkerPool("learner", LearnerActor, role, arguments, together=True)


def joined(make: Callable[[], WorkerPool], workforce: Workforce) -> WorkerPool:
    """Start the learner's ranks and connect them. If one is lost, start all again, at most `max_restarts` times.

    Raises:
        UserError: bad input found while loading.
        RoleFailure: the ranks did not start.
    """
    lost = 0
    while True:
        pool = make()
        workforce.pools.append(pool)
        try:
            [address] = wait([pool.actors[0].address.remote()], pool.role.deadline_s, "learner start")
            wait([actor.join.remote(address) for actor in pool.actors], pool.role.deadline_s, "learner start")
        except WorkerLost:
            lost += 1
            if lost > pool.role.max_restarts:
                raise
            workforce.close_pool(pool)
        else:
            pool.mark_up()
            return pool
