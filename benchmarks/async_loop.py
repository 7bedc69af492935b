"""The alignment loop with workers that only wait: what asynchrony gains on a long-tailed workload, and what it costs.

    python benchmarks/async_loop.py gain       samples a second at staleness 0, 1, 2, 4, in one run, same durations
    python benchmarks/async_loop.py overhead   groups a second with instant workers, 2 to 64 of them

Loop, ledger, buffer, learner's side, calls, heartbeats and references are those of a real job. Only the work inside
the workers is replaced: by sleeping for a group's own duration, drawn from `asynchrony.workload` by the group's first
seed, so that a group takes as long in every run. A batch of groups takes as long as its slowest, as on an accelerator.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from actors.rollout import RolloutReport
from pipelines.align_learner import Learner
from pipelines.align_loop import AlignmentLoop, Crew
from pipelines.align_workers import WorkerPool, Workforce
from pipelines.runtime import start_ray
from pipelines.simulation_workers import draw
from roboalign_ray.alignment.batch import BatchCounts
from roboalign_ray.alignment.prompts import PromptSchedule
from roboalign_ray.alignment.scored import GroupRecord
from roboalign_ray.alignment.update import UpdateResult
from roboalign_ray.config import JobConfig
from roboalign_ray.config.asynchrony import WorkloadConfig
from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.foundation.weights import pack
from roboalign_ray.rewards.protocol import Scored

# This file is no module that workers could import: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SEGMENTS = 2


class WaitingRollout:
    """Sleeps for as long as the slowest of its groups takes."""

    def __init__(self, work: WorkloadConfig) -> None:
        self.work, self.version, self.steps = work, 0, 0

    def ready(self) -> None:
        """Nothing to load."""

    def beat(self) -> int:
        """Segments so far."""
        return self.steps

    def load_weights(self, version: int, weights: Any, era: int = 0) -> None:
        """Fetch a version as a real worker does."""
        if version > self.version:
            for parcel in ray.get(weights[0], timeout=60):
                ray.get(list(parcel.buckets), timeout=60)
            self.version = version

    def rollout(self, names: list, seeds: list, version: int, weights: Any, era: int) -> tuple[Any, Any]:
        """One stand-in group per prompt."""
        self.load_weights(version, weights, era)
        seconds = max(draw(self.work.rollout, random.Random(group[0])) for group in seeds)
        versions = []
        for _ in range(SEGMENTS):
            versions.append(self.version)
            self.steps += 1
            time.sleep(seconds / SEGMENTS)
        groups = [(name.prompt_id, group, tuple(versions)) for name, group in zip(names, seeds, strict=True)]
        return groups, RolloutReport({}, len(groups), seconds, 0, 0)


class WaitingScorer:
    """Sleeps for each group."""

    def __init__(self, work: WorkloadConfig) -> None:
        self.work, self.groups = work, 0

    def ready(self) -> None:
        """Nothing to load."""

    def beat(self) -> int:
        """Groups so far."""
        return self.groups

    def score(self, groups: list) -> tuple[Any, ...]:
        """Stand-in scores."""
        records = []
        for prompt, seeds, versions in groups:
            self.groups += 1
            time.sleep(draw(self.work.scorer, random.Random(seeds[0])))
            scores = tuple(Scored(seed % 97 / 97) for seed in seeds)
            records.append(GroupRecord(prompt, seeds, versions, scores, 1, 0.0))
        return (*groups, records)


class WaitingLearner:
    """Sleeps for each group of an update and publishes a few bytes."""

    def __init__(self, work: WorkloadConfig) -> None:
        self.work, self.version, self.groups = work, 0, 0

    def beat(self) -> int:
        """Groups so far."""
        return self.groups

    def update(self, *groups: Any) -> UpdateResult:
        """No update."""
        for group in groups:
            self.groups += 1
            time.sleep(draw(self.work.learner, random.Random(group[1][0])))
        self.version += 1
        counts = BatchCounts(len(groups), 0, 0, 0, 0)
        return UpdateResult({}, 0.0, 1, len(groups), counts)

    def publish(self) -> tuple[int, Any]:
        """A thousand numbers."""
        manifest, self.buckets = pack({"w": np.zeros(1000, np.float32)}, self.version, WeightsConfig())
        return self.version, manifest

    def take_buckets(self) -> tuple[Any, ...]:
        """As the real learner's."""
        return (*self.buckets, len(self.buckets))


def job(args: argparse.Namespace, staleness: int, workers: int) -> JobConfig:
    """The job of one measurement; its workload is the benchmark's statement."""
    instant = {"seconds": 0.0, "shape": "constant"}
    tail = {"seconds": args.seconds, "shape": "lognormal", "variation": args.variation}
    learner = {"seconds": args.learner, "shape": "constant"}
    gain = args.what == "gain"
    role = {"num_cpus": 0.01, "threads": 1}
    return JobConfig.model_validate(
        {
            "alignment": {
                "updates": args.updates,
                "prompts_per_update": args.batch,
                "group_size": 4,
                "minibatch_prompts": args.batch,
            },
            "asynchrony": {
                "staleness": staleness,
                "groups_per_call": 1 if gain else args.call,
                "backpressure": {"adaptive": False, "depth_least": 8},
                "workload": {
                    "rollout": tail if gain else instant,
                    "scorer": instant,
                    "learner": learner if gain else instant,
                },
            },
            "cluster": {
                "rollout": {**role, "workers": workers},
                "scorer": {**role, "workers": 1 if gain else max(1, workers // 4)},
                "learner": {**role, "max_restarts": 0},
            },
        }
    )


def measure(config: JobConfig) -> dict[str, float]:
    """One run after its first update; groups a second, mean and most staleness."""
    work, cluster = config.asynchrony.workload, config.cluster
    pools = [
        WorkerPool("rollout", WaitingRollout, cluster.rollout, [{"work": work}] * cluster.rollout.workers),
        WorkerPool("scorer", WaitingScorer, cluster.scorer, [{"work": work}] * cluster.scorer.workers),
        WorkerPool("learner", WaitingLearner, cluster.learner, [{"work": work}], together=True),
    ]
    force = Workforce(pools, config.asynchrony.liveness)
    try:
        ray.get([actor.beat.remote() for pool in pools for actor in pool.actors], timeout=600)
        for pool in pools:
            pool.welcome()
        crew = Crew(force, pools[0], pools[1], Learner(force, pools[2]))
        schedule = PromptSchedule([(f"e{n}", 9) for n in range(50)], [("h", 9)], config.seed)
        loop, groups, ages, began = AlignmentLoop(config, crew, schedule), 0, [], math.nan
        for update in loop.updates(lambda: False):
            if update.index == 0:
                began = time.perf_counter()
                continue
            groups += len(update.groups)
            ages.append(update.scalars["staleness_mean"])
        seconds = time.perf_counter() - began
    finally:
        force.close()
    return {"groups_per_second": groups / seconds, "mean_staleness": float(np.mean(ages))}


def main() -> None:
    """Print one JSON line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("gain", "overhead"))
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32, help="groups per update")
    parser.add_argument("--workers", type=int, nargs="+", help="rollout workers; default 16, or 2 to 64")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seconds", type=float, default=0.2, help="mean of a group's rollout")
    parser.add_argument("--variation", type=float, default=1.5, help="its standard deviation over its mean")
    parser.add_argument("--learner", type=float, default=0.01, help="seconds of the learner per group")
    parser.add_argument("--call", type=int, default=4, help="groups per call (overhead)")
    args = parser.parse_args()
    counts = args.workers or ([16] if args.what == "gain" else [2, 4, 8, 16, 32, 64])
    levels = args.staleness if args.what == "gain" else [2]
    with start_ray(JobConfig().cluster, worker_logs=False):
        for workers in counts:
            for staleness in levels:
                result = measure(job(args, staleness, workers))
                print(json.dumps({"workers": workers, "staleness": staleness, **result}), flush=True)


if __name__ == "__main__":
    main()
