"""How well an inverse dynamics model reads actions: R² and errors per dimension on held-out episodes, and the trials.

    python benchmarks/inverse_dynamics.py                                   the shipped store at 5 Hz
    python benchmarks/inverse_dynamics.py STORE --views front,wrist --stride 1 --episodes 120 --steps 800

One process. Decoded training episodes are kept in memory, so the time is that of training alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.config.inverse_dynamics import (
    InverseDynamicsConfig,
    InverseGateConfig,
    InverseNetworkConfig,
    InverseTrainingConfig,
)
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import EpisodeStore, open_store
from roboalign_ray.episodes.windows import (
    Window,
    WindowSpec,
    cut_window,
    held_out_windows,
    long_enough,
    spread,
)
from roboalign_ray.inverse_dynamics.measurement import measure
from roboalign_ray.inverse_dynamics.model import InverseModel
from roboalign_ray.inverse_dynamics.network import InverseDynamics
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
from roboalign_ray.inverse_dynamics.training import InverseTrainer


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    store = open_store(options.store)
    episodes = EpisodesConfig(
        store=options.store, frame_stride=options.stride, held_out_fraction=options.held_out
    )
    config = InverseDynamicsConfig(
        network=InverseNetworkConfig(reach=options.reach),
        training=InverseTrainingConfig(steps=options.steps),
        gate=InverseGateConfig(clips=options.clips, clip_frames=options.frames),
    )
    card = fitted_action_card(store, episodes)
    clips = _training_clips(store, options)
    network = InverseDynamics(config.network, len(options.views), card.dims)
    trainer = InverseTrainer(network, config.training, ActionNormaliser.from_card(card), seed=options.seed)
    began = time.perf_counter()
    rng, reach = np.random.default_rng(options.seed), config.network.reach
    for _ in range(options.steps):
        trainer.step(*_batch(clips, reach, config.training.windows_per_step, rng))
    seconds = time.perf_counter() - began
    model = InverseModel(trainer.result(), options.views, card)
    spec = _spec(options, options.frames)
    windows = held_out_windows(store, spec, options.clips, fraction=options.held_out)
    frames = np.stack([window.frames for window in windows])
    began = time.perf_counter()
    found = measure(
        model, frames, np.stack([window.actions[:-1] for window in windows]), config.gate, seed=options.seed
    )
    rate = (
        5 * frames.shape[0] * (frames.shape[1] - 1) / (time.perf_counter() - began)
    )  # own frames, four trials
    if options.out:
        model.save(options.out)
        found.save(options.out)
    if options.json:
        print(json.dumps({"seconds": seconds, "read_per_second": rate, **found.model_dump(mode="json")}))
        return
    print(
        f"{len(clips)} training episodes, {options.steps} steps in {seconds:.0f} s, "
        f"{sum(p.numel() for p in network.parameters()):,} parameters; "
        f"{found.actions} held-out actions, {rate:.0f} read per second\n\n{found.table()}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="?", default="shipped")
    parser.add_argument("--views", type=lambda text: tuple(text.split(",")), default=("front",))
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=120, help="of the train split, spread over tasks")
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--reach", type=int, default=2)
    parser.add_argument("--frames", type=int, default=12, help="of a held-out clip")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the model and its measurement")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _spec(options: argparse.Namespace, frames: int) -> WindowSpec:
    return WindowSpec(frames=frames, stride=options.stride, views=options.views, height=64, width=64)


def _training_clips(store: EpisodeStore, options: argparse.Namespace) -> list[Window]:
    """Whole episodes, each as one window."""
    least = _spec(options, 2 * options.reach + 1)
    numbers = spread(store, long_enough(store, least, "train", options.held_out))[: options.episodes]
    clips = []
    for number in numbers:
        episode = store.read(number)
        frames = (episode.length - 1) // options.stride + 1
        clips.append(cut_window(episode, _spec(options, frames), 0, 0))
    return clips


def _batch(
    clips: list[Window], reach: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and actions around random moments of random episodes."""
    frames, actions = [], []
    for number in rng.integers(len(clips), size=count):
        clip = clips[number]
        middle = int(rng.integers(reach, len(clip.frames) - reach))
        frames.append(clip.frames[middle - reach : middle + reach + 1])
        actions.append(clip.actions[middle - reach : middle + reach + 1])
    return np.stack(frames), np.stack(actions)


if __name__ == "__main__":
    main()
