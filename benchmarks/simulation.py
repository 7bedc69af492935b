"""The simulated loop against the real one, and what it predicts for sizes that nobody has at hand.

    python benchmarks/simulation.py compare                           three shapes, measured and simulated
    python benchmarks/simulation.py curve --plot docs/simulation.png  up to 10,000 rollout workers

`compare` runs the alignment loop with workers that only wait (`_waiting.py`), and the model behind `roboalign simulate`
on the same job. Every group's rollout takes as long in the model as it did in the run, so that what differs is the
model and not the draw. `curve` changes the number of rollout workers (one scorer for twenty of them) and nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _waiting import measure, replayed, show, waiting_crew, waiting_job

from roboalign_ray.config import JobConfig
from roboalign_ray.pipelines.capacity.simulation import SimulationResult, simulate
from roboalign_ray.pipelines.cluster.runtime import start_ray

WORKERS = 8
SHAPES: dict[str, dict[str, Any]] = {
    "taking turns, long tails": {"staleness": 0, "rollout": 1.0, "scorer": 0.05, "learner": 0.02},
    "two versions behind, long tails": {"staleness": 2, "rollout": 1.0, "scorer": 0.05, "learner": 0.02},
    "slow learner": {"staleness": 1, "rollout": 1.0, "scorer": 0.05, "learner": 0.25},
}
BATCH = 16
CURVE_BATCH = 1024
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def shape_job(shape: dict[str, Any], scale: float, updates: int) -> JobConfig:
    """The job of one row.

    Args:
        scale: seconds of a group's rollout on average; the other roles' follow.
    """

    def stage(role: str) -> dict[str, Any]:
        tails = {"shape": "lognormal", "variation": 1.0} if role == "rollout" else {"shape": "constant"}
        return {"seconds": shape[role] * scale, **tails}

    return waiting_job(
        updates=updates,
        batch=BATCH,
        workers=WORKERS,
        scorers=2,
        staleness=shape["staleness"],
        work={role: stage(role) for role in ("rollout", "scorer", "learner")},
    )


def compare(args: argparse.Namespace) -> None:
    """One row per shape."""
    jobs = {name: shape_job(shape, args.seconds, args.updates) for name, shape in SHAPES.items()}
    with start_ray(JobConfig().cluster, worker_logs=False), waiting_crew(next(iter(jobs.values()))) as crew:
        for name, config in jobs.items():
            loop = crew.loop(config)
            measured = measure(loop)["groups_per_second"]
            simulated = replayed(config, loop.schedule)
            show(
                {
                    "shape": name,
                    "measured_groups_per_second": measured,
                    "simulated_groups_per_second": simulated,
                    "difference": simulated / measured - 1,
                }
            )


def curve_job(workers: int, staleness: int) -> JobConfig:
    """A batch of a thousand groups; a rollout takes 30 s on average, and a rank 0.5 s for a group."""
    return JobConfig.model_validate(
        {
            "alignment": {"prompts_per_update": CURVE_BATCH, "minibatch_prompts": CURVE_BATCH},
            "asynchrony": {
                "staleness": staleness,
                "backpressure": {"adaptive": False, "depth": 8},
                "workload": {
                    "rollout": {"seconds": 30.0, "shape": "lognormal", "variation": 1.0},
                    "scorer": {"seconds": 1.0, "shape": "constant"},
                    "learner": {"seconds": 0.5, "shape": "constant"},
                },
            },
            "cluster": {
                "rollout": {"workers": workers},
                "scorer": {"workers": max(1, workers // 20)},
                "learner": {"workers": 64},
            },
        }
    )


def curve(args: argparse.Namespace) -> None:
    """One row per number of workers and staleness; a picture where one is asked for."""
    found: dict[int, list[SimulationResult]] = {}
    for staleness in args.staleness:
        for workers in COUNTS:
            result = simulate(curve_job(workers, staleness), args.updates)
            found.setdefault(staleness, []).append(result)
            show(
                {
                    "workers": workers,
                    "staleness": staleness,
                    "groups_per_second": result.groups_per_second,
                    "of_ideal": result.groups_per_second / result.ideal_groups_per_second,
                    "busy": result.utilisation,
                }
            )
    if args.plot:
        plot(found, args.plot)


def plot(found: dict[int, list[SimulationResult]], path: Path) -> None:
    """Groups a second over workers, a line per staleness."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for staleness, results in found.items():
        axes.plot(COUNTS, [r.groups_per_second for r in results], marker="o", label=f"staleness {staleness}")
    ideal = [r.ideal_groups_per_second for r in next(iter(found.values()))]
    axes.plot(COUNTS, ideal, color="0.6", linestyle="--", label="slowest role alone")
    axes.set(xscale="log", yscale="log", xlabel="rollout workers", ylabel="groups a second")
    axes.set_title(
        f"simulated: {CURVE_BATCH} groups an update, rollouts of 30 s with long tails, 64 learner ranks"
    )
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("compare", "curve"), default="compare")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="mean of a group's rollout (compare)")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4], help="(curve)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where the picture goes (curve)")
    args = parser.parse_args()
    (compare if args.what == "compare" else curve)(args)


if __name__ == "__main__":
    main()
