"""Steps of environments and candidates of a planner a second, and what batching them brings, in one run.

    python benchmarks/planning.py
    python benchmarks/planning.py --long     the time of a step early and late in an episode, memory of branches

Environments of 1, 8 and 64 sub-environments step a world model and show every frame. CEM plans in one batch, and the
same search steps 64 single environments in a loop, with the same world model, candidates, iterations, horizon and cost.
Both searches take turns; figures are medians over repeats.

With --long, one environment is stepped 510 times. Its time at step 1, 100 and 500 is the median of the ten steps from
there on. Then a state of five frames is branched 64 times, and copied 64 times. Their memory is that of all arrays
that they hold, shared ones counted once, without the world model's weights.
"""

from __future__ import annotations

import roboalign_ray

# isort: split
import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
import torch

import roboalign_ray.planning
from roboalign_ray import open_store, plan_actions
from roboalign_ray.planning.costs import Imagined
from roboalign_ray.planning.protocol import ActionPlan, Problem
from roboalign_ray.planning.registry import open_planner
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.registry import open_world_model

LATE, _TEN, _HISTORY = (1, 100, 500), 10, 5  # numbers of steps; steps of a median; steps before a branch


def brightness(frames: np.ndarray) -> np.ndarray:
    """A cost that takes no time: float [R] of frames [R, ..., H, W, 3]."""
    return frames.reshape(len(frames), -1).mean(axis=1, dtype=np.float64)


def last_brightness(imagined: Imagined) -> np.ndarray:
    """`brightness` of the last frame."""
    return brightness(imagined.last_frame)


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def make_envs(model, count: int) -> gymnasium.vector.VectorEnv:
    """Sub-environments of one world model, all begun."""
    envs = gymnasium.make_vec(
        roboalign_ray.planning.ENVIRONMENT, num_envs=count, world_model=model, horizon=10**6
    )
    envs.reset(seed=0)
    return envs


def step_rates(model, arguments: argparse.Namespace) -> dict[str, float]:
    """Steps of sub-environments a second, by their number."""
    rates = {}
    for count in arguments.envs:
        envs = make_envs(model, count)
        actions = [envs.action_space.sample() for _ in range(arguments.steps + 1)]
        envs.step(actions[0])  # warms up
        times = [seconds_of(partial(envs.step, action)) for action in actions[1:]]
        rates[str(count)] = count / statistics.median(times)
    return rates


def in_a_batch(model, arguments: argparse.Namespace) -> ActionPlan:
    """CEM over one state that is branched into all candidates."""
    return plan_actions(
        make_envs(model, 1), "cem", horizon=arguments.horizon, cost=last_brightness, **settings(arguments)
    )


def in_a_loop(model, arguments: argparse.Namespace) -> ActionPlan:
    """The same CEM, each candidate in an environment of its own, one after the other."""
    singles = [make_envs(model, 1) for _ in range(arguments.candidates)]
    first = singles[0]
    saved = first.unwrapped.save_state()

    def cost(state, candidates: np.ndarray, seed: int) -> np.ndarray:
        last = []
        for env, candidate in zip(singles, candidates, strict=True):
            env.unwrapped.load_state(saved)
            for action in candidate:
                seen, *_ = env.step(action[None])
            last.append(seen[0])
        return brightness(np.stack(last))

    space = first.single_action_space
    problem = Problem(None, cost, space.low, space.high, arguments.horizon)
    return open_planner("cem", settings(arguments)).plan(problem)


def step_times(model) -> dict[str, float]:
    """Median seconds of a step of one environment, by the first of ten steps."""
    envs = make_envs(model, 1)
    actions = [envs.action_space.sample() for _ in range(LATE[-1] + _TEN)]
    times = [seconds_of(partial(envs.step, action)) for action in actions]
    return {str(first): statistics.median(times[first - 1 : first - 1 + _TEN]) for first in LATE}


def branch_bytes(model, arguments: argparse.Namespace) -> dict[str, int]:
    """Bytes of a state that is branched into all candidates, and of as many copies of the state."""
    count, episode = arguments.candidates, open_store().read(0)
    frame = np.broadcast_to(episode.view()[0], (model.card.views, *episode.view()[0].shape))
    prompt = Prompt("one", frame, frame, np.empty((0, 0), np.float32), episode.instruction)
    state = model.step(model.begin([prompt], [(0,)]), episode.actions[None, :_HISTORY])
    saved, known = model.save(state), storages(model)
    held = {
        "branched": model.branch(state, [0], [tuple(range(count))]),
        "copies": [model.load(saved) for _ in range(count)],
    }
    return {
        name: sum(size for place, size in storages(states).items() if place not in known)
        for name, states in held.items()
    }


def storages(held: object) -> dict[int, int]:
    """Address and bytes of the memory of every array that an object holds, however deep; each once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    queue = [held]
    while queue:
        one = queue.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, np.ndarray):
            while isinstance(one.base, np.ndarray):
                one = one.base
            found[one.__array_interface__["data"][0]] = one.nbytes
        elif isinstance(one, dict):
            queue += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            queue += one
        elif not isinstance(one, type | str | bytes | int | float | None):
            queue += vars(one).values() if hasattr(one, "__dict__") else ()
            names = getattr(type(one), "__slots__", ())
            queue += [getattr(one, name) for name in names if hasattr(one, name)]
    return found


def settings(arguments: argparse.Namespace) -> dict[str, int]:
    """Of both searches."""
    return {"candidates": arguments.candidates, "iterations": arguments.iterations}


def measure(arguments: argparse.Namespace) -> dict:
    """All figures."""
    model = open_world_model(arguments.world_model)
    if arguments.long:
        return {
            "threads": torch.get_num_threads(),
            "seconds_of_step": step_times(model),
            "state_bytes": branch_bytes(model, arguments),
        }
    steps = arguments.candidates * arguments.iterations * arguments.horizon
    rates: dict[str, list[float]] = {"batch": [], "loop": []}
    for repeat in range(arguments.repeats + 1):
        for name, search in (("batch", in_a_batch), ("loop", in_a_loop)):
            taken = search(model, arguments).seconds
            if repeat:  # the first one warms up
                rates[name].append(steps / taken)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "threads": torch.get_num_threads(),
        "env_steps_per_second": step_rates(model, arguments),
        "candidate_steps_per_second": medians,
        "batch_over_loop": medians["batch"] / medians["loop"],
    }


def show_long(figures: dict, arguments: argparse.Namespace) -> None:
    """The figures of --long."""
    times = figures["seconds_of_step"]
    for number, taken in times.items():
        print(f"step {number:>3}: {1000 * taken:.1f} ms, {taken / times[str(LATE[0])]:.2f} of step {LATE[0]}")
    branched, copies = (figures["state_bytes"][name] for name in ("branched", "copies"))
    print(f"{arguments.candidates} branches: {branched / 1e6:.2f} MB; as many copies: {copies / 1e6:.2f} MB")
    print(f"branches take {branched / copies:.3f} of the memory of copies")


def show(figures: dict, arguments: argparse.Namespace) -> None:
    """Two tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"environment, {figures['threads']} threads, median of {arguments.steps} steps")
    table.add_column("sub-environments", justify="right")
    table.add_column("steps/s of all", justify="right")
    for count, rate in figures["env_steps_per_second"].items():
        table.add_row(count, f"{rate:.1f}")
    console.print(table)
    size = (
        f"{arguments.candidates} candidates x {arguments.horizon} steps x {arguments.iterations} iterations"
    )
    table = Table(title=f"CEM, {size}, median of {arguments.repeats}")
    table.add_column("candidates are")
    table.add_column("candidate steps/s", justify="right")
    for name, title in (("batch", "one batch"), ("loop", "single environments in a loop")):
        table.add_row(title, f"{figures['candidate_steps_per_second'][name]:.1f}")
    console.print(table)
    console.print(f"one batch is {figures['batch_over_loop']:.1f} times as fast")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world-model", default="shipped", help="folder")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--long", action="store_true", help="late steps and memory in place of rates")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    elif arguments.long:
        show_long(figures, arguments)
    else:
        show(figures, arguments)


if __name__ == "__main__":
    main()
