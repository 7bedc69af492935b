"""A policy rewarded by the very measurement that judges it in the end, to set beside one that a student rewards.

    python benchmarks/measured_reward.py
    python benchmarks/measured_reward.py --updates 36          # goes on where the run before ended

A student was distilled from measurement. Where a policy that is aligned on measurement itself gains no more than one
that is aligned on the student (`roboalign reproduce alignment`, the same settings), it is not what the student fails to
say that holds the policy back.

No job may have this reward: measurement compares with the real continuation and is deaf to what was asked, so that the
reward gate's trial of wrong instructions would refuse it. So the scorer is replaced here, from outside.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.bench.pair_maker import PairMaker
from roboalign_ray.judge.online.rollout_annotator import RolloutAnnotator
from roboalign_ray.judge.privileged.judge import PrivilegedJudge
from roboalign_ray.pipelines.align import launch as align_crew
from roboalign_ray.pipelines.align.job import ALIGNED, run_align
from roboalign_ray.pipelines.cluster.worker_pool import WorkerPool
from roboalign_ray.pipelines.evaluate.best_of_n_study import models_table, run_select
from roboalign_ray.rewards.protocol import Reward, Score, Scored
from roboalign_ray.world_model.prompts import prompt_spec
from roboalign_ray.world_model.protocol import Rollout


def measuring(config: JobConfig) -> type[ScorerActor]:
    """A scorer that measures; made in a function, so that it travels to its worker by value."""

    class MeasuringScorer(ScorerActor):
        _annotator: RolloutAnnotator | None = None  # a cached property holds a lock, which does not travel

        def _opened(self) -> RolloutAnnotator:
            card = self._decoder.card
            spec = prompt_spec(self.episodes, config.rollout.horizon, card.height, card.width)
            maker = PairMaker(open_store(self.episodes.store), spec, config.bench)
            return RolloutAnnotator(PrivilegedJudge(config.bench.privileged), self._decoder, maker)

        def _scores(self, group: Rollout, reward: Reward) -> Sequence[Score]:
            self._annotator = self._annotator or self._opened()
            outcomes = self._annotator.annotate([group], [range(len(group.seeds))])
            return [
                one.pair if isinstance(one.pair, Failed) else Scored(float(one.scores.sum()))
                for one in outcomes
            ]

    return MeasuringScorer


def main() -> None:
    """Parse, align, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="reproduce")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8, help="rollouts of every held-out window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/measured_reward"))
    args = parser.parse_args()
    witness = load_job(args.profile, ["evaluation.judges=[privileged]"])
    # Fidelity needs no student, and is never asked.
    changes = {"reward.fidelity.weight": 1, "reward.judged.weight": 0, "seed": args.seed}
    changes["alignment.updates"] = args.updates
    config = load_job(args.profile, [f"{key}={value}" for key, value in changes.items()])
    scorer = measuring(config)

    class Pool(WorkerPool):
        def __init__(self, role: str, worker: type, *args: Any, **how: Any) -> None:
            super().__init__(role, scorer if role == "scorer" else worker, *args, **how)

    align_crew.WorkerPool = Pool  # type: ignore[misc]
    run_align(config, args.out, resume=True)
    print(models_table(run_select(witness, samples=args.samples, models={"measured": [args.out / ALIGNED]})))


if __name__ == "__main__":
    main()
