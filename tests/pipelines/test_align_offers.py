"""New weights reach rollout workers in the middle of a rollout. Workers stand in; loop, calls, references are real."""

from __future__ import annotations

import sys
import threading

import numpy as np
import ray
from ray import cloudpickle

from roboalign_ray.alignment.advantages import BatchCounts
from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.alignment.update import UpdateResult
from roboalign_ray.config import JobConfig
from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.foundation.weight_sync.packing import pack, unpack
from roboalign_ray.pipelines.align.groups import Numbering
from roboalign_ray.pipelines.align.learner import Learner
from roboalign_ray.pipelines.align.loop import AlignmentLoop, Crew
from roboalign_ray.pipelines.cluster.worker_pool import WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule
from roboalign_ray.world_model.protocol import RolloutReport

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

WAIT_S, BATCH = 30.0, 2


class Role:
    def ready(self):
        pass

    def beat(self):
        return 0


class Rollouts(Role):
    """Rolls out at once, but for the prompts in `patient`: these last until weights come that are newer than those that
    the call brought."""

    def __init__(self, patient):
        self.patient, self.version, self.weight = patient, 0, 0.0
        self.came = threading.Condition()

    def load_weights(self, version, weights, incarnation=0):
        with self.came:
            if version > self.version:
                parcel = ray.get(weights[0])
                self.weight = float(unpack(parcel.manifest, ray.get(list(parcel.buckets)))["w"][0])
                self.version = version
                self.came.notify_all()

    def rollout(self, names, seeds, version, weights, incarnation):
        self.load_weights(version, weights, incarnation)
        first = self.version
        with self.came:
            if any(name.prompt_id in self.patient for name in names):
                self.came.wait_for(lambda: self.version > first, WAIT_S)
        groups = [
            (name.prompt_id, group, (first, self.version), self.weight)
            for name, group in zip(names, seeds, strict=True)
        ]
        return groups, RolloutReport({}, len(groups), 1.0, 0, 0)


class Scorers(Role):
    def score(self, groups, student=()):
        records = []
        for prompt, seeds, versions, weight in groups:
            scores = tuple(Scored(weight + number) for number, _ in enumerate(seeds))
            records.append(GroupRecord(prompt, seeds, versions, scores, 1, 0.0))
        return (*groups, records)


class Learners(Role):
    def __init__(self):
        self.version = 0

    def update(self, *groups):
        self.version += 1
        return UpdateResult({}, 0.0, 1, len(groups), "group", BatchCounts(len(groups), 0, 0, 0, 0))

    def publish(self):
        state = {"w": np.full(4, 10.0 * self.version, np.float32)}
        manifest, self.buckets = pack(state, self.version, WeightsConfig())
        return self.version, manifest

    def take_buckets(self):
        return (*self.buckets, len(self.buckets))


def test_a_rollout_under_way_is_given_the_weights_of_an_update_that_ends_meanwhile(ray_cluster):
    role = {"num_cpus": 0.1, "threads": 1}
    config = JobConfig.model_validate(
        {
            "alignment": {
                "updates": 2,
                "prompts_per_update": BATCH,
                "group_size": 2,
                "minibatch_prompts": BATCH,
            },
            "asynchrony": {"staleness": 1, "groups_per_call": 1, "backpressure": {"adaptive": False}},
            "cluster": {"rollout": {**role, "workers": 2}, "scorer": role, "learner": role},
        }
    )
    schedule = PromptSchedule([(f"e{n}", 9) for n in range(9)], [("h", 9)], config.seed, config.rollout)
    numbering = Numbering(schedule, BATCH, 2)
    # Groups 2 and 3 may start while update 0, which trains 0 and 1, is still to come.
    patient = {numbering.name(number).prompt_id for number in (2, 3)}
    assert not patient & {numbering.name(number).prompt_id for number in (0, 1)}
    pools = [
        WorkerPool("rollout", Rollouts, config.cluster.rollout, [{"patient": patient}] * 2),
        WorkerPool("scorer", Scorers, config.cluster.scorer, [{}]),
        WorkerPool("learner", Learners, config.cluster.learner, [{}], together=True),
    ]
    force = Workforce(pools, config.asynchrony.liveness)
    try:
        for loaded in [pool.load() for pool in pools]:
            loaded()
        crew = Crew(force, pools[0], pools[1], Learner(force, pools[2]))
        updates = list(AlignmentLoop(config, crew, schedule).updates(lambda: False))
    finally:
        force.close()
    assert [[done.record.versions for _, done in update.groups] for update in updates] == [
        [(0, 0), (0, 0)],
        [(0, 1), (0, 1)],
    ]
    # The bytes came too: the scorer saw what the second version holds.
    assert {done.record.scores[0].total for _, done in updates[1].groups} == {10.0}
