"""The alignment loop with workers that only wait: what asynchrony gains, and what the loop itself costs.

    python benchmarks/async_loop.py gain       samples a second at staleness 0, 1, 2, 4 on three workloads, in one run,
                                               and what the model behind `roboalign simulate` makes of the same groups
    python benchmarks/async_loop.py overhead   groups a second with instant workers, 2 to 64 of them, in one run

The workloads of `gain`, all with rollouts of the same mean length on the same workers:

    long tails      horizons from 1 to 48 frames, T as likely as T^-1.5; the learner takes a fifth of the rollouts' time
    equal lengths   every horizon is the mean one; the learner takes a fifth of the rollouts' time
    slow learner    equal lengths, and a learner that takes eight times the rollouts' time

Rollouts are handed out one group at a time. See `_waiting.py` for what is real and what is not.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from _waiting import measure, replayed, show, waiting_crew, waiting_job

from roboalign_ray.config import JobConfig, RolloutConfig
from roboalign_ray.pipelines.cluster.runtime import start_ray
from roboalign_ray.scheduling.prompt_schedule import HorizonDraw

SAMPLES = 4  # of a group
LONGEST = 48
TAILS: dict[str, Any] = {"shape": "long_tailed", "least": 1, "tail": 1.5}
INSTANT = {"seconds": 0.0, "shape": "constant"}


@dataclass(frozen=True)
class Workload:
    """Horizons, and the learner's time as a multiple of what the rollouts of an update take all workers together."""

    horizons: dict[str, Any]
    learner: float


WORKLOADS = {
    "long tails": Workload(TAILS, 0.2),
    "equal lengths": Workload({"shape": "fixed"}, 0.2),
    "slow learner": Workload({"shape": "fixed"}, 8.0),
}


def mean_horizon() -> float:
    """Frames, of the long tails."""
    draw = HorizonDraw(RolloutConfig(horizon=LONGEST, horizons=TAILS))
    return float(draw.lengths @ draw.shares)


def gain_job(args: argparse.Namespace, workload: Workload, staleness: int) -> JobConfig:
    """The job of one row."""
    fixed = workload.horizons["shape"] == "fixed"
    rollout = {"seconds": args.seconds, "shape": "constant"}  # of groups whose length is not drawn
    learner = {"seconds": workload.learner * args.seconds / args.workers, "shape": "constant"}
    return waiting_job(
        updates=args.updates,
        batch=args.batch,
        workers=args.workers,
        staleness=staleness,
        work={"rollout": rollout, "scorer": INSTANT, "learner": learner},
        horizon=LONGEST,
        horizons={} if fixed else workload.horizons,
    )


def gain(args: argparse.Namespace) -> None:
    """One row per workload and staleness."""
    with waiting_crew(gain_job(args, WORKLOADS["long tails"], 0)) as crew:
        for name in args.workloads:
            workload, before = WORKLOADS[name], 0.0
            for staleness in args.staleness:
                config = gain_job(args, workload, staleness)
                frame_s = args.seconds / mean_horizon()
                loop = crew.loop(config, frame_s=frame_s)
                found = measure(loop)
                samples = SAMPLES * found["groups_per_second"]
                before = before or samples
                show(
                    {
                        "workload": name,
                        "staleness": staleness,
                        "samples_per_second": samples,
                        "times_the_first": samples / before,
                        **found,
                        "simulated_groups_per_second": replayed(config, loop.schedule, frame_s),
                    }
                )


def overhead(args: argparse.Namespace) -> None:
    """One row per number of workers, one scorer for four of them."""

    def config(workers: int) -> JobConfig:
        return waiting_job(
            updates=args.updates,
            batch=args.batch,
            workers=workers,
            scorers=max(1, workers // 4),
            staleness=2,
            call=args.call,
            work={"rollout": INSTANT, "scorer": INSTANT, "learner": INSTANT},
        )

    with waiting_crew(config(args.counts[0])) as crew:
        measure(crew.loop(config(args.counts[0])))  # what runs for the first time is slower
        for workers in args.counts:
            show({"workers": workers, **measure(crew.loop(config(workers)))})


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("gain", "overhead"), default="gain")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32, help="groups per update")
    parser.add_argument("--workers", type=int, default=16, help="rollout workers (gain)")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seconds", type=float, default=0.2, help="mean of a group's rollout (gain)")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="(overhead)")
    parser.add_argument("--call", type=int, default=4, help="groups per call (overhead)")
    args = parser.parse_args()
    with start_ray(JobConfig().cluster, worker_logs=False):
        (gain if args.what == "gain" else overhead)(args)


if __name__ == "__main__":
    main()
