"""Trains the diffusion world model on one GPU within a time limit, and keeps the weights only if they are better.

    python benchmarks/gpu_train_diffusion.py runs/two_views --out runs/diffusion --seconds 420
    python benchmarks/gpu_train_diffusion.py runs/two_views --out runs/diffusion --against OTHER/world_model

The training step is that of `roboalign pretrain PROFILE`, without Ray, with a larger batch: all episodes are decoded
once, into memory, and the number of steps follows from the time that a step takes. Afterwards the model rolls out
held-out windows from one real frame. Without `--against` the weights are written. With it both models roll out the same
windows, and the weights are written only if LPIPS falls with a 95 % interval below 0 and the interval of PSNR is not
wholly below 0. Every line of the output is JSON; the exit code is 3 where nothing was written.

Needs PyTorch, PyAV or OpenCV, and the LPIPS backbone; no Ray, DeepSpeed or vLLM.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.config import EvaluationConfig, JobConfig, RolloutConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import Window, WindowSpec, cut_window, held_out_windows
from roboalign_ray.evaluation.bootstrap import bootstrap_mean
from roboalign_ray.metrics.frame_metrics import clip_metrics
from roboalign_ray.metrics.perceptual import PerceptualDistance, load_lpips
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.engine import DiffusionEngine
from roboalign_ray.world_model.diffusion.files import load_denoiser, save_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.pretraining import DiffusionTrainer
from roboalign_ray.world_model.protocol import Prompt

_WARM_UP, _TIMED = 5, 10  # steps before the number of steps is chosen
_SMALLEST_RUN = 20  # steps
_LOG_EVERY_S = 10.0


def tell(**figures: Any) -> None:
    """One line of JSON."""
    print(json.dumps(figures), flush=True)


class Episodes:
    """All training episodes of a store, decoded: uint8 frames [T, V, H, W, 3] and actions [T, A] each.

    Args:
        config: the job; its store, views, stride and held-out fraction count.
        processes: that decode.
    """

    def __init__(self, config: JobConfig, processes: int) -> None:
        self.spec = window_spec(config, config.diffusion.window_frames)
        store = open_store(config.episodes.store)
        numbers = store.split("train", config.episodes.held_out_fraction)
        read = partial(decoded, str(config.episodes.store), self.spec)
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            found = list(pool.map(read, numbers, chunksize=max(1, len(numbers) // (4 * processes))))
        self.episodes = [one for one in found if len(one[0]) >= self.spec.frames]
        self.context_range = config.diffusion.training.context_range

    @property
    def frames(self) -> int:
        """Number of frames, counted once for all views."""
        return sum(len(frames) for frames, _ in self.episodes)

    def batch(self, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows of random episodes: reference frames, frames, actions, as `DiffusionTrainer.step` takes them."""
        windows = []
        for number in rng.integers(len(self.episodes), size=rows):
            frames, actions = self.episodes[number]
            start = int(rng.integers(len(frames) - self.spec.frames + 1))
            context = int(rng.integers(max(0, start - self.context_range), start + 1))
            chosen = slice(start, start + self.spec.frames)
            windows.append((frames[context], frames[chosen], actions[chosen]))
        contexts, frames, actions = zip(*windows, strict=True)
        return np.stack(contexts), np.stack(frames), np.stack(actions)


def window_spec(config: JobConfig, frames: int) -> WindowSpec:
    """Windows of the views that the denoiser has, at its size."""
    sizes = config.diffusion.denoiser
    return WindowSpec(
        frames=frames,
        stride=config.episodes.frame_stride,
        views=config.episodes.views,
        height=sizes.height,
        width=sizes.width,
    )


def decoded(store: str, spec: WindowSpec, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A whole episode as one window."""
    episode = open_store(store).read(number)
    whole = WindowSpec(
        frames=(episode.length - 1) // spec.stride + 1,
        stride=spec.stride,
        views=spec.views,
        height=spec.height,
        width=spec.width,
    )
    window = cut_window(episode, whole, 0, 0)
    return window.frames, window.actions


def job(given: argparse.Namespace, **training: Any) -> JobConfig:
    """The profile with the command line's values, and those of its section `diffusion.training`."""
    training["precision"] = given.precision
    if given.learning_rate:
        training["learning_rate"] = given.learning_rate
    chosen = [f"diffusion.training.{key}={value}" for key, value in training.items()]
    return load_job(given.profile, [f"episodes.store={given.store}", *given.set, *chosen])


def make_trainer(config: JobConfig, scaling: ActionScaling, lpips: PerceptualDistance | None, device: str):
    """A trainer with new weights, which depend on the job's seed alone."""
    torch.manual_seed(config.seed)
    network = Denoiser(config.diffusion.denoiser).to(device)
    return DiffusionTrainer(network, config.diffusion, scaling, lpips, device=device, seed=config.seed)


def seconds_of_a_step(trainer: DiffusionTrainer, episodes: Episodes, rows: int) -> float:
    """Median wall time, with the making of the batch."""
    rng, times = np.random.default_rng(0), []
    for _ in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        trainer.step(*episodes.batch(rows, rng))  # returns figures, so the device has finished
        times.append(time.perf_counter() - began)
    return float(np.median(times[_WARM_UP:]))


def train(config: JobConfig, episodes: Episodes, given: argparse.Namespace, deadline: float) -> Any:
    """The trained trainer; the schedule is as long as the time that is left."""
    scaling = ActionScaling.from_card(fitted_action_card(open_store(config.episodes.store), config.episodes))
    settings = config.diffusion.training
    lpips = (
        load_lpips(settings.perceptual_network, given.device, required=True)
        if settings.perceptual_weight
        else None
    )
    steps = given.steps
    if not steps:
        step_s = seconds_of_a_step(make_trainer(config, scaling, lpips, given.device), episodes, given.rows)
        steps = max(_SMALLEST_RUN, int((deadline - time.monotonic()) / step_s))
    tell(section="schedule", steps=steps, windows_per_step=given.rows)
    config = job(given, steps=steps, warmup_steps=min(settings.warmup_steps, steps // 10))
    trainer = make_trainer(config, scaling, lpips, given.device)
    rng, said = np.random.default_rng(config.seed), time.monotonic()
    while trainer.steps_done < steps and (given.steps or time.monotonic() < deadline):
        figures = trainer.step(*episodes.batch(given.rows, rng))
        if time.monotonic() - said > _LOG_EVERY_S:
            said = time.monotonic()
            tell(section="training", step=trainer.steps_done, **{k: round(v, 5) for k, v in figures.items()})
    tell(section="trained", step=trainer.steps_done, of=steps)
    return trainer


def rolled_out(
    folder: Path, windows: list[Window], lpips: PerceptualDistance, device: str
) -> dict[str, np.ndarray]:
    """PSNR, SSIM, LPIPS and freeze rate [windows], means over frames and views, of rollouts from one real frame."""
    network, description = load_denoiser(folder, device)
    engine = DiffusionEngine(network, description, RolloutConfig(refresh={"policy": "none"}), device=device)
    names = [f"{window.episode_id}@{window.start}" for window in windows]
    prompts = [
        Prompt(name, window.frames[0], window.frames[0], window.actions[:-1])
        for name, window in zip(names, windows, strict=True)
    ]
    rollouts = engine.rollout(prompts, [(number,) for number in range(len(prompts))])
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "lpips": [], "freeze_rate": []}
    for rollout, window in zip(rollouts, windows, strict=True):
        made, real = engine.decode(rollout), window.frames[1:]
        views = [
            clip_metrics(made[:, :, view], real[:, view], window.frames[0, view], lpips, EvaluationConfig())
            for view in range(made.shape[2])
        ]
        for name in ("psnr", "ssim", "lpips"):
            found[name].append(float(np.nanmean([clip.per_frame[name] for clip in views])))
        found["freeze_rate"].append(float(np.nanmean([clip.freeze_rate for clip in views])))
    return {name: np.array(values) for name, values in found.items()}


def better(new: dict[str, np.ndarray], old: dict[str, np.ndarray], episodes: list[str]) -> bool:
    """Whether held-out LPIPS fell for certain and PSNR did not."""
    changes = {
        name: bootstrap_mean(new[name] - old[name], episodes=episodes) for name in ("psnr", "ssim", "lpips")
    }
    tell(section="change", **{name: interval.as_json() for name, interval in changes.items()})
    return changes["lpips"].high < 0 and changes["psnr"].high > 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="episode store of the profile's views")
    parser.add_argument("--profile", default="demo_diffusion")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the profile")
    parser.add_argument(
        "--out", type=Path, required=True, help="run folder; the model goes to OUT/world_model"
    )
    parser.add_argument("--against", type=Path, help="folder of a world model that must be beaten")
    parser.add_argument("--seconds", type=float, default=420.0, help="for everything but the evaluation")
    parser.add_argument("--steps", type=int, help="instead of as many as there is time for")
    parser.add_argument("--rows", type=int, default=64, help="windows per step")
    parser.add_argument("--learning-rate", type=float, help="the profile's by default")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--windows", type=int, default=48, help="held-out windows")
    parser.add_argument("--horizon", type=int, default=30)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that decode")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


def main() -> int:
    """Train, measure, write; exit code 3 if nothing was written."""
    given, began = parsed(), time.monotonic()
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    config = job(given)
    episodes = Episodes(config, given.processes)
    tell(
        section="episodes",
        episodes=len(episodes.episodes),
        frames=episodes.frames,
        seconds=round(time.monotonic() - began, 1),
    )
    trainer = train(config, episodes, given, began + given.seconds)
    if trainer.steps_done < _SMALLEST_RUN:
        tell(section="result", written=None, why=f"fewer than {_SMALLEST_RUN} steps in the time given")
        return 3
    folder = given.out / "world_model"
    candidate = given.out / "candidate"
    card = fitted_action_card(open_store(config.episodes.store), config.episodes)
    save_denoiser(candidate, trainer.result(), config.diffusion.noise, card)
    spec = window_spec(config, given.horizon + 1)
    windows = held_out_windows(open_store(given.store), spec, given.windows, completing=0.5)
    lpips = load_lpips(device=given.device)
    episodes_of = [window.episode_id for window in windows]
    new = rolled_out(candidate, windows, lpips, given.device)
    tell(section="held out", lpips_network=lpips.label, windows=len(windows), **means(new, episodes_of))
    if given.against is not None:
        old = rolled_out(given.against, windows, lpips, given.device)
        tell(section="against", **means(old, episodes_of))
        if not better(new, old, episodes_of):
            tell(section="result", written=None)
            return 3
    candidate.rename(folder)
    tell(section="result", written=str(folder), seconds=round(time.monotonic() - began, 1))
    return 0


def means(values: dict[str, np.ndarray], episodes: list[str]) -> dict[str, dict[str, float]]:
    """Means with 95 % intervals."""
    return {name: bootstrap_mean(of, episodes=episodes).as_json() for name, of in values.items()}


if __name__ == "__main__":
    sys.exit(main())
