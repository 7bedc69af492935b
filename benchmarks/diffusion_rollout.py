"""The diffusion rollout engine against its network's bare forward passes, and shared against separate histories.

    python benchmarks/diffusion_rollout.py
    python benchmarks/diffusion_rollout.py --candidates 16 --history 60 --frames 1 --repeats 1
    python benchmarks/diffusion_rollout.py --candidates 16 --history 60 --frames 1 --prompts 1 --memory

A denoiser of the demo's size (5.9 million parameters, two views of 64x64), with random weights: time does not depend on
what is predicted. All ways are interleaved in one run, after one frame of each; figures are medians over repeats. On a
busy machine --cpu counts processor time with one thread, and --best takes the shortest. Progress goes to the error
stream.

    bare        the network's forward pass alone, at several numbers of rows per pass
    engine      `WorldModel.rollout`, K samples of n frames for every prompt: inputs, noise, passes, rounding, packing
                of payloads
    shared      for every prompt a history of H frames, once; then K candidates of n frames branched from it
    separate    for every prompt K rollouts of H + n frames

A shared history saves at most K (H + n) / (H + K n), the ratio of frames that are denoised; both are printed. It comes
near K where the history is long: for 0.8 K with K = 16, H must be at least 59 n.

--memory measures the bytes of the state that `save` gives at the end, and how far memory rises above what the model and
one frame of every candidate need: of a GPU, or of a process of its own for each way.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.config import (
    DenoiserConfig,
    DiffusionSamplingConfig,
    NoiseConfig,
    RefreshConfig,
    RolloutConfig,
)
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.engine import DiffusionEngine
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.state import DiffusionState
from roboalign_ray.world_model.protocol import Prompt, Rollout

ROWS = (1, 2, 4, 16)
HISTORIES = ("shared", "separate")


class Ways:
    """One denoiser, used in several ways.

    Args:
        given: the command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.sizes = given, DenoiserConfig(views=2)
        torch.manual_seed(0)
        self.network = Denoiser(self.sizes).eval()
        dims = self.sizes.action_dims
        figures = {"p01": -1.0, "p99": 1.0, "mean": 0.0, "std": 0.5, "min": -1.0, "max": 1.0}
        statistics_ = ActionStatistics(frames=1, **{name: (value,) * dims for name, value in figures.items()})
        card = ActionCard(
            names=tuple(f"action[{n}]" for n in range(dims)),
            units=("",) * dims,
            kinds=("unknown",) * dims,
            bounds=(None,) * dims,
            statistics=statistics_,
        )
        folder = DenoiserFolder(
            self.sizes, NoiseConfig(steps=given.steps), card, ActionScaling.from_card(card)
        )
        sampling = DiffusionSamplingConfig(rows_per_pass=given.rows)
        config = RolloutConfig(refresh=RefreshConfig(policy="none"), diffusion=sampling)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.engine = DiffusionEngine(self.network.to(device), folder, config)
        frame = (self.sizes.views, self.sizes.height, self.sizes.width, 3)
        start = np.random.default_rng(0).integers(0, 256, frame, dtype=np.uint8)
        actions = np.random.default_rng(1).uniform(-1, 1, (given.history + given.frames, dims))
        self.prompt = Prompt("benchmark", start, start, actions.astype(np.float32))
        self.seeds = tuple(range(given.candidates))

    def bare(self, rows: int) -> Callable[[], object]:
        """As many passes of so many rows as the engine's rollout needs frames."""
        network, device = self.network, next(self.network.parameters()).device
        sizes, picture = self.sizes, (3, self.sizes.height, self.sizes.width)
        made = (
            torch.randn(rows, sizes.views, sizes.clip_frames, *picture),
            torch.ones(rows),
            torch.zeros(rows, sizes.views, len(sizes.history), *picture),
            torch.zeros(rows, sizes.views, *picture),
            torch.zeros(rows, sizes.past_actions + sizes.clip_frames, sizes.action_dims),
            torch.zeros(rows),
        )
        inputs = [value.to(device) for value in made]
        frames = self.given.prompts * self.given.candidates * self.given.frames * self.given.steps

        @torch.inference_mode()
        def passes() -> None:
            for _ in range(-(-frames // rows)):
                network(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return passes

    def rollout(self) -> object:
        """K samples of n frames from each given frame."""
        prompt = replace(self.prompt, actions=self.prompt.actions[: self.given.frames])
        return self.engine.rollout([prompt] * self.given.prompts, [self.seeds] * self.given.prompts)

    def shared(self, history: int | None = None) -> DiffusionState:
        """K candidates from one history for each prompt: the state at the end."""
        model, prompts = self.engine, self.given.prompts
        length = self.given.history if history is None else history
        actions = np.stack([self.prompt.actions[: length + self.given.frames]] * prompts)
        begun = model.begin([self.prompt] * prompts, [(number,) for number in range(prompts)])
        state = model.step(begun, actions[:, :length])
        branched = model.branch(state, range(prompts), [self.seeds] * prompts)
        return model.step(branched, actions[:, length:])

    def separate(self, history: int | None = None) -> DiffusionState:
        """K rollouts, each with a history of its own: the state at the end."""
        model, prompts = self.engine, self.given.prompts
        length = self.given.history if history is None else history
        actions = np.stack([self.prompt.actions[: length + self.given.frames]] * prompts)
        return model.step(model.begin([self.prompt] * prompts, [self.seeds] * prompts), actions)

    def finished(self, way: str) -> list[Rollout]:
        """The rollouts of one of the two."""
        return self.engine.rollouts(getattr(self, way)())

    def warm_up(self) -> None:
        """One frame of history and of every candidate, in both ways."""
        for way in HISTORIES:
            getattr(self, way)(self.sizes.clip_frames)


def measure(ways: dict[str, Callable[[], object]], given: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way."""
    clock = time.process_time if given.cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats):
        for name, way in ways.items():
            began = clock()
            way()
            times[name].append(clock() - began)
        print(f"repeat {repeat + 1} of {given.repeats}", file=sys.stderr)
    return {name: min(of) if given.best else statistics.median(of) for name, of in times.items()}


def memory(given: argparse.Namespace, way: str) -> dict[str, float]:
    """Megabytes of the state, and by how much memory rises, in a fresh process."""
    torch.set_num_threads(1 if given.cpu else given.threads)
    ways = Ways(given)
    ways.warm_up()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _of_process("VmRSS")
    state = getattr(ways, way)()
    peak = (torch.cuda.max_memory_allocated() if on_gpu else _of_process("VmHWM")) - before
    held = sum(array.nbytes for array in ways.engine.save(state).values())
    print(f"memory, {way} histories", file=sys.stderr)
    return {"state": round(held / 1e6, 2), "peak above one frame": round(peak / 1e6, 1)}


def _of_process(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def speeds(given: argparse.Namespace) -> dict[str, object]:
    """Frames per second of all ways, and their ratios."""
    all_ways = Ways(given)
    ways = {f"bare {rows}": all_ways.bare(rows) for rows in ROWS}
    if not given.passes:
        all_ways.warm_up()
        ways |= {"engine": all_ways.rollout}
        ways |= {way: lambda way=way: all_ways.finished(way) for way in HISTORIES}
    seconds = measure(ways, given)
    candidates, history, frames = given.candidates, given.history, given.frames
    count = given.prompts * candidates * frames
    result: dict[str, object] = {"frames/s": {name: round(count / seconds[name], 1) for name in ways}}
    if given.passes:
        return result
    bare = seconds[f"bare {all_ways.engine.rows_per_pass}"]
    gain = seconds["separate"] / seconds["shared"]
    rollout = all_ways.engine.rollouts(all_ways.separate(all_ways.sizes.clip_frames))[0]
    return result | {
        "engine against bare passes": round(bare / seconds["engine"], 3),
        "shared against separate": round(gain, 2),
        "the same, over K": round(gain / candidates, 3),
        "at most": round(candidates * (history + frames) / (history + candidates * frames), 2),
        "bytes of a payload": sum(value.nbytes for value in rollout.payload.to_arrays()[1].values()),
        "bytes of its frames": rollout.payload.packed.size,  # type: ignore[attr-defined]
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=16, help="K")
    parser.add_argument("--history", type=int, default=24, help="H, frames before the candidates part")
    parser.add_argument("--frames", type=int, default=2, help="n, frames of a candidate")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps of a frame")
    parser.add_argument("--rows", type=int, default=None, help="rows of a pass; the engine's own by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--best", action="store_true", help="shortest times, not medians")
    parser.add_argument("--cpu", action="store_true", help="processor time, not wall time; one thread")
    parser.add_argument("--passes", action="store_true", help="passes alone")
    parser.add_argument("--memory", action="store_true", help="memory of both kinds of history, no times")
    given = parser.parse_args()
    result: dict[str, object] = {"settings": vars(given)}
    if given.memory:
        for way in HISTORIES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result[f"megabytes, {way}"] = pool.apply(memory, (given, way))
    else:
        torch.set_num_threads(1 if given.cpu else given.threads)
        result |= speeds(given)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
