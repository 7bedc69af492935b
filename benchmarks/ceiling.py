"""How far a policy comes that is rewarded by the very measurement that judges it in the end.

    python benchmarks/ceiling.py
    python benchmarks/ceiling.py --updates 36          # goes on where the run before ended

A student can be no better a reward than what it was distilled to say. Where a policy that is aligned on measurement
itself gains no more than one that is aligned on the student (`roboalign reproduce alignment`, the same settings), it is
not the student that holds it back.

No job may have this reward: measurement compares with the real continuation and is deaf to what was asked, so that the
reward gate's trial of wrong instructions would refuse it. So the scorer is replaced here, from outside.
"""

from __future__ import annotations

import argparse
from functools import cached_property
from pathlib import Path

import actors.scorer
from pipelines.align import ALIGNED, run_align
from pipelines.judge_select import models_table, run_select
from roboalign_ray.alignment.prompts import prompt_spec
from roboalign_ray.alignment.scored import ScoredGroup
from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.annotator import RolloutAnnotator
from roboalign_ray.judge.bench.making import PairMaker
from roboalign_ray.judge.teacher.privileged import PrivilegedJudge
from roboalign_ray.rewards.protocol import Reward, Scored
from roboalign_ray.world_model.rollout import RolloutGroup


def measuring(config: JobConfig) -> type[actors.scorer.ScorerActor]:
    """A scorer that measures; made in a function, so that it travels to its worker by value."""

    class MeasuringScorer(actors.scorer.ScorerActor):
        @cached_property
        def _annotator(self) -> RolloutAnnotator:
            size = self._tokenizer.config
            spec = prompt_spec(self.episodes, config.rollout.horizon, size.height, size.width)
            maker = PairMaker(open_store(self.episodes.store), spec, config.bench)
            return RolloutAnnotator(PrivilegedJudge(config.bench.privileged), self._codec, maker)

        def _score_group(self, group: RolloutGroup, reward: Reward) -> ScoredGroup:
            self._groups += 1
            told = self._annotator.annotate([group], [range(len(group.seeds))])
            scores = [
                one.pair if isinstance(one.pair, Failed) else Scored(float(one.scores.sum())) for one in told
            ]
            return ScoredGroup(group, tuple(scores))

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
    parser.add_argument("--out", type=Path, default=Path("runs/ceiling"))
    args = parser.parse_args()
    # A reward that needs no student: what it would say is not asked.
    config = load_job(
        args.profile,
        [
            "reward.weights.fidelity=1",
            "reward.weights.judged=0",
            "evaluation.judges=[privileged]",
            f"alignment.updates={args.updates}",
            f"seed={args.seed}",
        ],
    )
    actors.scorer.ScorerActor = measuring(config)  # type: ignore[misc]
    run_align(config, args.out, resume=True)
    told = run_select(
        load_job(args.profile, ["evaluation.judges=[privileged]"]),
        samples=args.samples,
        models=[args.out / ALIGNED],
    )
    print(models_table(told))


if __name__ == "__main__":
    main()
