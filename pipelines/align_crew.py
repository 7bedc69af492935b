"""An alignment job's workers: which actors with which arguments, loaded and ready; a new learner for a lost one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.align_learner import Learner
from pipelines.align_loop import Crew
from pipelines.align_workers import WorkerPool, Workforce
from pipelines.runtime import role_threads, wait
from pipelines.weights import tokenizer_folder, world_model_folder
from roboalign_ray.config import JobConfig


@contextmanager
def crew_of(config: JobConfig) -> Iterator[Crew]:
    """The job's workers, everything loaded; ended with the block.

    Raises:
        UserError: bad input found while loading.
        RoleFailure: a worker did not come up.
    """
    workforce = Workforce([], config.asynchrony.liveness)
    try:
        yield _hire(config, workforce)
    finally:
        workforce.close()


def replace_learner(config: JobConfig, crew: Crew) -> None:
    """End all ranks and start new ones, which know nothing yet; nobody waits any more for what is under way.

    Raises:
        RoleFailure: they did not come up.
    """
    crew.workforce.dismiss(crew.learner.pool)
    crew.workforce.disregard()
    pool = _learners(config)
    crew.workforce.pools.append(pool)
    _wait_for_ranks(pool, _join(pool))
    crew.learner = Learner(crew.workforce, pool, crew.learner.era + 1)


def _hire(config: JobConfig, workforce: Workforce) -> Crew:
    """Load all roles at once; their loading times overlap."""
    from actors.rollout import RolloutActor
    from actors.scorer import ScorerActor

    cluster = config.cluster
    common = {"tokenizer": tokenizer_folder(config), "episodes": config.episodes}
    rollout: dict[str, Any] = {
        **common,
        "world_model": world_model_folder(config),
        "rollout": config.rollout,
        "travel": config.asynchrony.weights,
        "threads": role_threads(cluster.rollout),
    }
    scorer: dict[str, Any] = {**common, "reward": config.reward, "threads": role_threads(cluster.scorer)}
    rollouts = WorkerPool("rollout", RolloutActor, cluster.rollout, [rollout] * cluster.rollout.workers)
    workforce.pools.append(rollouts)
    scorers = WorkerPool("scorer", ScorerActor, cluster.scorer, [scorer] * cluster.scorer.workers)
    workforce.pools.append(scorers)
    learners = _learners(config)
    workforce.pools.append(learners)

    joining = _join(learners)
    loading = [actor.ready.remote() for actor in rollouts.actors]
    scoring = [actor.ready.remote() for actor in scorers.actors]
    wait(loading, cluster.rollout.deadline_s, "rollout start")
    wait(scoring, cluster.scorer.deadline_s, "scorer start")
    _wait_for_ranks(learners, joining)
    rollouts.welcome()
    scorers.welcome()
    return Crew(workforce, rollouts, scorers, Learner(workforce, learners))


def _learners(config: JobConfig) -> WorkerPool:
    from actors.learner import LearnerActor

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
        }
        for rank in range(role.workers)
    ]
    return WorkerPool("learner", LearnerActor, role, arguments, together=True)


def _join(pool: WorkerPool) -> list[Any]:
    [address] = wait([pool.actors[0].address.remote()], pool.role.deadline_s, "learner start")
    return [actor.join.remote(address) for actor in pool.actors]


def _wait_for_ranks(pool: WorkerPool, joining: list[Any]) -> None:
    wait(joining, pool.role.deadline_s, "learner start")
    pool.welcome()
