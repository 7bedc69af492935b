"""Does asynchrony cost learning? The same job at staleness 0 and above, several seeds of each, taking turns in one run.

    python benchmarks/learning.py
    python benchmarks/learning.py --staleness 0 2 --seeds 0 1 2 --updates 12

Training is real: rollouts of long-tailed lengths handed out one group at a time, with decoupled off-policy correction
above staleness 0. Compared is the reward on held-out prompts with the same seeds at every evaluation: its rise from the
first evaluation to the last, mean over seeds, and the noise of a difference of two such means (two standard errors).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _waiting import show

from roboalign_ray.config.loading import load_job
from roboalign_ray.pipelines.align.job import AlignResult, run_align
from roboalign_ray.pipelines.cluster.runtime import start_ray

CURVE = "held_out/reward_mean"


def overrides(args: argparse.Namespace, staleness: int, seed: int) -> list[str]:
    """Settings of one run."""
    correction = "decoupled" if staleness else "none"
    return [
        f"seed={seed}",
        f"asynchrony.staleness={staleness}",
        f"asynchrony.off_policy.correction={correction}",
        "asynchrony.groups_per_call=1",
        "rollout.horizons.shape=long_tailed",
        f"alignment.updates={args.updates}",
        f"alignment.evaluate_every={args.updates}",
        *args.set,
    ]


def figures(result: AlignResult) -> dict[str, Any]:
    """A run's rise of the held-out reward, and what it got done."""
    steps, rewards = result.curves[CURVE]
    seconds = result.curves["seconds"][1]
    rate = result.counts["samples"] / float(seconds.sum())
    return {
        "before": float(rewards[0]),
        "rise": float(rewards[-1] - rewards[0]),
        "updates": int(steps[-1]),
        "samples_per_second": rate,
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--staleness", type=int, nargs=2, default=[0, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=12)
    args = parser.parse_args()
    rises: dict[int, list[float]] = {staleness: [] for staleness in args.staleness}
    with (
        tempfile.TemporaryDirectory() as folder,
        start_ray(load_job(args.profile, args.set).cluster, worker_logs=False),
    ):
        for seed in args.seeds:
            for staleness in args.staleness:
                config = load_job(args.profile, overrides(args, staleness, seed))
                result = run_align(config, Path(folder) / f"{staleness}-{seed}", quiet=True)
                found = figures(result)
                rises[staleness].append(found["rise"])
                show({"staleness": staleness, "seed": seed, **found})
    one, other = (np.array(rises[staleness]) for staleness in args.staleness)
    noise = 2 * float(np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)))
    show(
        {
            **{f"mean_rise_at_{staleness}": float(np.mean(values)) for staleness, values in rises.items()},
            "difference": float(other.mean() - one.mean()),
            "noise": noise,
        }
    )


if __name__ == "__main__":
    main()
