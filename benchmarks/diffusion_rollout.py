"""The diffusion rollout engine against its network's bare forward passes, and shared against separate histories.

    python benchmarks/diffusion_rollout.py
    python benchmarks/diffusion_rollout.py --candidates 16 --history 48 --frames 4 --steps 2

A denoiser of the demo's size (5.9 million parameters, two views of 64x64), with random weights: time does not depend on
what is predicted. All ways are interleaved in one run; figures are medians over repeats. On a busy machine --cpu counts
processor time with one thread, and --best takes the shortest. Progress goes to the error stream.

    bare        the network's forward pass alone, at several numbers of rows per pass
    engine      `WorldModel.rollout`, K samples of n frames for every prompt: inputs, noise, passes, rounding, packing
                of payloads
    shared      for every prompt a history of H frames, once; then K candidates of n frames branched from it
    separate    for every prompt K rollouts of H + n frames

A shared history saves at most K (H + n) / (H + K n), the ratio of frames that are denoised; both are printed.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

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
from roboalign_ray.world_model.protocol import Prompt, Rollout

ROWS = (1, 2, 4, 16)


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
        self.engine = DiffusionEngine(self.network, folder, config)
        frame = (self.sizes.views, self.sizes.height, self.sizes.width, 3)
        start = np.random.default_rng(0).integers(0, 256, frame, dtype=np.uint8)
        actions = np.random.default_rng(1).uniform(-1, 1, (given.history + given.frames, dims))
        self.prompt = Prompt("benchmark", start, start, actions.astype(np.float32))
        self.seeds = tuple(range(given.candidates))

    def bare(self, rows: int) -> Callable[[], object]:
        """As many passes of so many rows as the engine's rollout needs frames."""
        network = self.network
        sizes, picture = self.sizes, (3, self.sizes.height, self.sizes.width)
        inputs = (
            torch.randn(rows, sizes.views, sizes.clip_frames, *picture),
            torch.ones(rows),
            torch.zeros(rows, sizes.views, len(sizes.history), *picture),
            torch.zeros(rows, sizes.views, *picture),
            torch.zeros(rows, sizes.past_actions + sizes.clip_frames, sizes.action_dims),
            torch.zeros(rows),
        )
        frames = self.given.prompts * self.given.candidates * self.given.frames * self.given.steps

        @torch.inference_mode()
        def passes() -> None:
            for _ in range(-(-frames // rows)):
                network(*inputs)

        return passes

    def rollout(self) -> object:
        """K samples of n frames from each given frame."""
        prompt = replace(self.prompt, actions=self.prompt.actions[: self.given.frames])
        return self.engine.rollout([prompt] * self.given.prompts, [self.seeds] * self.given.prompts)

    def shared(self) -> object:
        """K candidates from one history for each prompt."""
        model, prompts, history = self.engine, self.given.prompts, self.given.history
        actions = np.stack([self.prompt.actions] * prompts)
        begun = model.begin([self.prompt] * prompts, [(number,) for number in range(prompts)])
        state = model.step(begun, actions[:, :history])
        branched = model.branch(state, range(prompts), [self.seeds] * prompts)
        return model.rollouts(model.step(branched, actions[:, history:]))

    def separate(self) -> list[Rollout]:
        """K rollouts, each with a history of its own."""
        return self.engine.rollout([self.prompt] * self.given.prompts, [self.seeds] * self.given.prompts)


def measure(ways: dict[str, Callable[[], object]], given: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way."""
    clock = time.process_time if given.cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if repeat:  # the first one warms up
                times[name].append(clock() - began)
        print(f"repeat {repeat} of {given.repeats}", file=sys.stderr)
    return {name: min(of) if given.best else statistics.median(of) for name, of in times.items()}


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
    given = parser.parse_args()
    torch.set_num_threads(1 if given.cpu else given.threads)
    all_ways = Ways(given)
    ways = {f"bare {rows}": all_ways.bare(rows) for rows in ROWS}
    if not given.passes:
        ways |= {"engine": all_ways.rollout, "shared": all_ways.shared, "separate": all_ways.separate}
    seconds = measure(ways, given)
    candidates, history, frames = given.candidates, given.history, given.frames
    count = given.prompts * candidates * frames
    result: dict[str, object] = {"settings": vars(given)}
    result["frames/s"] = {
        name: round(count / seconds[name], 1) for name in ways if name not in ("shared", "separate")
    }
    if not given.passes:
        bare = seconds[f"bare {all_ways.engine.rows_per_pass}"]
        result["engine against bare passes"] = round(bare / seconds["engine"], 3)
        result["shared against separate"] = round(seconds["separate"] / seconds["shared"], 2)
        result["at most"] = round(candidates * (history + frames) / (history + candidates * frames), 2)
        rollout = all_ways.separate()[0]
        result["bytes of a payload"] = sum(v.nbytes for v in rollout.payload.to_arrays()[1].values())
        result["bytes of its frames"] = rollout.payload.packed.size  # type: ignore[attr-defined]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
