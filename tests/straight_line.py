"""An alignment job without Ray: actors of this process call one another in turn, and every bit must be the job's."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from roboalign_ray.actors.learner import LearnerActor
from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.alignment.records.scored import reward_scalars
from roboalign_ray.foundation.weight_sync.packing import unpack
from roboalign_ray.pipelines.align.groups import split_evenly
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store


def straight_line(job):
    """The published weights of the last version, journal lines, curves."""
    folder = Path(job.world_model_weights)
    reward = job.reward if job.rollout.branching.chooses else None
    rollout = RolloutActor(folder, job.rollout, job.episodes, reward=reward)
    scorer = ScorerActor(folder, job.reward, job.episodes)
    learner = LearnerActor(folder, job.alignment)
    learner.join(learner.address())
    schedule = schedule_from_store(job.episodes, job.rollout, job.seed)
    size, lines, curves = job.alignment.prompts_per_update, [], defaultdict(list)
    for update in range(job.alignment.updates):
        names = schedule.train(update, size)
        seeds = schedule.seeds(update, size, job.alignment.group_size)
        scored, records = [], []
        for share in split_evenly(size, job.cluster.rollout.workers):
            groups, _ = rollout.rollout([names[i] for i in share], [seeds[i] for i in share])
            *some, numbers = scorer.score(groups)
            scored += some
            records += numbers
        lines += [record.as_json() for record in records]
        result = learner.update(*scored)
        for name, value in (
            reward_scalars(records) | result.metrics | {"grad_norm": result.grad_norm}
        ).items():
            curves[name].append(value)
        version, manifest = learner.publish()
        *buckets, _ = learner.take_buckets()
        weights = unpack(manifest, buckets)
        rollout.load_weights(version, weights)
    learner.close()
    return weights, json.loads(json.dumps(lines)), curves
