"""Workers that only wait, behind the alignment loop of a real job: what benchmarks of the loop itself run on.

Loop, ledger, buffer, learner's side, calls, heartbeats and references are those of a real job. Only the work inside the
workers is replaced by sleeping for a group's own duration, a function of the group's seed or of its horizon, so that a
group takes as long in every run. A call of several groups takes as long as its slowest, as on an accelerator.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.config import JobConfig
from roboalign_ray.config.asynchrony import StageTimeConfig, WorkloadConfig
from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.pipelines.align.groups import Numbering
from roboalign_ray.pipelines.align.learner import Learner
from roboalign_ray.pipelines.align.loop import AlignmentLoop, Crew
from roboalign_ray.pipelines.capacity.simulated_workers import draw
from roboalign_ray.pipelines.capacity.simulation import Simulation
from roboalign_ray.pipelines.cluster.worker_pool import WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule
from roboalign_ray.world_model.protocol import RolloutReport

# This file is no module that workers could import: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

_START_S = 1200.0  # for all workers to come up


def seconds_of(stage: StageTimeConfig, role: str, seed: int) -> float:
    """How long a role takes for the group of that first seed."""
    return draw(stage, random.Random(f"{role} {seed}"))


def rollout_seconds(work: WorkloadConfig, frame_s: float, name: PromptName, seeds: tuple[int, ...]) -> float:
    """How long a group's rollout takes: by its horizon where its prompt names one, else by its first seed."""
    return name.horizon * frame_s if name.horizon else seconds_of(work.rollout, "rollout", seeds[0])


class Waiting:
    """What all of them have: `begin` sets one up for a run.

    Attributes:
        work: durations.
        version: of the weights.
        steps: pieces of work done; the sign of life.
    """

    steps = 0

    def ready(self) -> None:
        """There is nothing to load."""

    def begin(self, work: WorkloadConfig, frame_s: float, payload: int) -> None:
        """Everything from the start.

        Args:
            work: durations of groups whose prompts name no horizon, and the number of segments.
            frame_s: rollout seconds of a frame of those whose prompts name one.
            payload: bytes of a group.
        """
        import roboalign_ray.alignment.update
        import roboalign_ray.foundation.weight_sync.packing  # noqa: F401  (now, and not within the run that is measured)

        self.work, self.frame_s, self.payload = work, frame_s, payload
        self.version = self.steps = 0

    def beat(self) -> int:
        """Signs of life."""
        return self.steps


class WaitingRollout(Waiting):
    """Sleeps for as long as the slowest of its groups takes."""

    def load_weights(self, version: int, weights: Any, incarnation: int = 0) -> None:
        """Fetch a version as a real worker does."""
        if version > self.version:
            ray.get(list(ray.get(weights[0], timeout=60).buckets), timeout=60)
            self.version = version

    def rollout(
        self, names: list, seeds: list, version: int, weights: Any, incarnation: int
    ) -> tuple[Any, Any]:
        """One stand-in group per prompt."""
        self.load_weights(version, weights, incarnation)
        seconds = max(
            rollout_seconds(self.work, self.frame_s, name, group)
            for name, group in zip(names, seeds, strict=True)
        )
        versions = []
        for _ in range(self.work.segments):
            versions.append(self.version)
            self.steps += 1
            time.sleep(seconds / self.work.segments)
        groups = [
            (name.prompt_id, group, tuple(versions), np.zeros(self.payload, np.uint8))
            for name, group in zip(names, seeds, strict=True)
        ]
        return groups, RolloutReport({}, len(groups), seconds, 0, 0)


class WaitingScorer(Waiting):
    """Sleeps for each group."""

    def score(self, groups: list, student: Any = ()) -> tuple[Any, ...]:
        """Stand-in scores."""
        records = []
        for prompt, seeds, versions, _ in groups:
            self.steps += 1
            time.sleep(seconds_of(self.work.scorer, "scorer", seeds[0]))
            scores = tuple(Scored(seed % 97 / 97) for seed in seeds)
            records.append(GroupRecord(prompt, seeds, versions, scores, 1, 0.0))
        return (*groups, records)


class WaitingLearner(Waiting):
    """Sleeps for each group of an update and publishes a few bytes."""

    def update(self, *groups: Any) -> Any:
        """No update."""
        from roboalign_ray.alignment.advantages import BatchCounts
        from roboalign_ray.alignment.update import UpdateResult

        for _, seeds, *_ in groups:
            self.steps += 1
            time.sleep(seconds_of(self.work.learner, "learner", seeds[0]))
        self.version += 1
        return UpdateResult({}, 0.0, 1, len(groups), "group", BatchCounts(len(groups), 0, 0, 0, 0))

    def publish(self) -> tuple[int, Any]:
        """A thousand numbers."""
        from roboalign_ray.foundation.weight_sync.packing import pack

        manifest, self.buckets = pack({"w": np.zeros(1000, np.float32)}, self.version, WeightsConfig())
        return self.version, manifest

    def take_buckets(self) -> tuple[Any, ...]:
        """As the real learner's."""
        return (*self.buckets, len(self.buckets))


def waiting_job(
    *,
    updates: int,
    batch: int,
    workers: int,
    scorers: int = 1,
    staleness: int = 0,
    call: int = 1,
    work: dict[str, Any],
    **rollout: Any,
) -> JobConfig:
    """A job of such workers.

    Args:
        updates, batch, workers, scorers, staleness: groups per update is the batch.
        call: groups of one rollout call.
        work: `asynchrony.workload`.
        rollout: of the section of that name.
    """
    role = {"num_cpus": 0.001, "threads": 1}
    return JobConfig.model_validate(
        {
            "rollout": rollout,
            "alignment": {
                "updates": updates,
                "prompts_per_update": batch,
                "group_size": 4,
                "minibatch_prompts": batch,
            },
            "asynchrony": {
                "staleness": staleness,
                "groups_per_call": call,
                "backpressure": {"adaptive": False, "depth": 8},
                "liveness": {"silence_s": 600.0, "stall_s": 600.0},
                "workload": {"weights_s": 0.0, **work},
            },
            "cluster": {
                "rollout": {**role, "workers": workers},
                "scorer": {**role, "workers": scorers},
                "learner": {**role, "max_restarts": 0},
            },
        }
    )


class WaitingCrew:
    """Workers that one job after the other uses; each job has as many as it asks for, and no idle ones beside them.

    Args:
        config: the first job.
    """

    def __init__(self, config: JobConfig) -> None:
        cluster = config.cluster
        self.rollouts, self.scorers, self.learner = (
            WorkerPool(name, cls, role, [{}] * role.workers, together=name == "learner")
            for name, cls, role in (
                ("rollout", WaitingRollout, cluster.rollout),
                ("scorer", WaitingScorer, cluster.scorer),
                ("learner", WaitingLearner, cluster.learner),
            )
        )
        self.force = Workforce([self.rollouts, self.scorers, self.learner], config.asynchrony.liveness)
        for loaded in [pool.load() for pool in self.force.pools]:
            loaded()

    def loop(self, config: JobConfig, *, frame_s: float = 0.0, payload: int = 0) -> AlignmentLoop:
        """A loop over fifty episodes, with as many of the workers as the job has.

        Args:
            config: from `waiting_job`.
            frame_s, payload: as in `Waiting.begin`.
        """
        cluster, work = config.cluster, config.asynchrony.workload
        for pool, role in (
            (self.rollouts, cluster.rollout),
            (self.scorers, cluster.scorer),
            (self.learner, cluster.learner),
        ):
            self.force.resize(pool, role.workers)
            while pool.up < role.workers:
                self.force.turn(1.0)
            ray.get([actor.begin.remote(work, frame_s, payload) for actor in pool.actors], timeout=_START_S)
        crew = Crew(self.force, self.rollouts, self.scorers, Learner(self.force, self.learner))
        schedule = PromptSchedule([(f"e{n}", 9) for n in range(50)], [("h", 9)], config.seed, config.rollout)
        return AlignmentLoop(config, crew, schedule)


@contextmanager
def waiting_crew(config: JobConfig) -> Iterator[WaitingCrew]:
    """The workers for the length of the block."""
    crew = WaitingCrew(config)
    try:
        yield crew
    finally:
        crew.force.close()


def measure(loop: AlignmentLoop) -> dict[str, float]:
    """A loop from the end of its first update to its last: groups a second, mean staleness, the driver's time a group.

    Of the driver's time only that counts in which a processor was at work for it.
    """
    groups, ages = 0, []
    began = busy = 0.0
    for update in loop.updates(lambda: False):
        if update.index == 0:
            began, busy = time.perf_counter(), time.process_time()
            continue
        groups += len(update.groups)
        ages.append(update.scalars["staleness_mean"])
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    return {
        "groups_per_second": groups / seconds,
        "driver_ms_per_group": 1000 * busy / groups,
        "mean_staleness": float(np.mean(ages)),
    }


class Replayed(Simulation):
    """The model, with every group's rollout as long as in a run: groups start in the order of their numbers."""

    def __init__(self, config: JobConfig, schedule: PromptSchedule, frame_s: float) -> None:
        super().__init__(config)
        numbering = Numbering(schedule, self.batch, config.alignment.group_size)
        tickets = (numbering.ticket(number, 1) for number in count())
        self._seconds = (rollout_seconds(self.work, frame_s, each.name, each.seeds) for each in tickets)

    def _draw(self, stage: StageTimeConfig) -> float:
        return next(self._seconds) if stage is self.work.rollout else super()._draw(stage)


def replayed(config: JobConfig, schedule: PromptSchedule, frame_s: float = 0.0) -> float:
    """Groups a second, from the end of the first update to the last, that the model gives a job of waiting workers."""
    return Replayed(config, schedule, frame_s).run(1, config.alignment.updates).groups_per_second


def show(row: dict[str, Any]) -> None:
    """One JSON line."""
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
    print(json.dumps(rounded), flush=True)
