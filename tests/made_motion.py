"""Episodes of two squares whose steps are the actions, and inverse dynamics models trained on them in seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.config.inverse_dynamics import (
    InverseGateConfig,
    InverseNetworkConfig,
    InverseTrainingConfig,
)
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.inverse_dynamics.embodiment import Embodiment
from roboalign_ray.inverse_dynamics.measurement import measure
from roboalign_ray.inverse_dynamics.model import InverseModel
from roboalign_ray.inverse_dynamics.network import InverseDynamics
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
from roboalign_ray.inverse_dynamics.training import InverseTrainer

SIDE, SQUARE, MOST = 32, 8, 3  # pixels of a frame and of a square; largest step
CLIP = 10  # frames
FPS = 10.0
NAMES = ("delta_row [px]", "delta_column [px]")
NETWORK = InverseNetworkConfig(
    height=SIDE, width=SIDE, reach=1, channels=(16, 32), keypoints=8, hidden=64, layers=1
)
TRAINING = InverseTrainingConfig(
    steps=150, windows_per_step=32, learning_rate=3e-3, ema_decay=0.95, pixel_noise=0.01
)
GATE = InverseGateConfig(clips=24, clip_frames=CLIP, least_r2=0.8)


def walk(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Steps float32 [steps, 2] in whole pixels that keep the square inside the frame."""
    place, found = np.array([SIDE // 2 - SQUARE // 2] * 2), []
    for _ in range(steps):
        step = rng.integers(-MOST, MOST + 1, 2)
        outside = (place + step < 0) | (place + step > SIDE - SQUARE)
        step = np.where(outside, -step, step)
        place, found = place + step, [*found, step]
    return np.array(found, np.float32)


def pictures(steps: np.ndarray, *, colour: tuple[int, int, int] = (220, 180, 60)) -> np.ndarray:
    """Frames uint8 [steps + 1, SIDE, SIDE, 3] of a square that takes these steps."""
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]) + SIDE // 2 - SQUARE // 2
    frames = np.full((len(places), SIDE, SIDE, 3), 40, np.uint8)
    for frame, (row, column) in zip(frames, np.rint(places).astype(int), strict=True):
        frame[max(0, row) : max(0, row + SQUARE), max(0, column) : max(0, column + SQUARE)] = colour
    return frames


def clips(count: int, seed: int, views: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [count, CLIP, V, SIDE, SIDE, 3] and steps float32 [count, CLIP - 1, 2]; other views are mirrored."""
    rng = np.random.default_rng(seed)
    steps = np.stack([walk(rng, CLIP - 1) for _ in range(count)])
    seen = np.stack([pictures(row) for row in steps])
    return np.stack([seen, seen[:, :, :, ::-1]][:views], axis=2), steps


def motion_card(embodiment: str = "square") -> ActionCard:
    """The card of the steps."""
    _, steps = clips(64, seed=1)
    return ActionCard.make(
        NAMES,
        ("delta", "delta"),
        embodiments=[embodiment],
        rate=FPS,
        stride=1,
        statistics=ActionStatistics.of(steps.reshape(-1, 2)).model_dump(),
    )


def motion_episode(number: int, length: int = 24) -> Episode:
    """An episode of the square in two views."""
    steps = walk(np.random.default_rng([7, number]), length)
    frames = pictures(steps)[:-1]
    return Episode(
        episode_id=f"motion/{number:02d}",
        group_id=f"motion/{number:02d}",
        frames={"front": frames, "wrist": frames[:, :, ::-1]},
        actions=steps,
        instruction="move the square",
        fps=FPS,
        embodiment="square",
        action_names=NAMES,
        action_kinds=("delta", "delta"),
    )


@cache
def trained_model(views: int = 1, labels: str = "true") -> InverseModel:
    """A model trained on 128 clips. With labels "shuffled" the actions are those of other clips."""
    torch.manual_seed(0)
    frames, steps = clips(128, seed=2, views=views)
    if labels == "shuffled":
        steps = np.random.default_rng(3).permuted(steps.reshape(-1, 2), axis=0).reshape(steps.shape)
    card, rng = motion_card(), np.random.default_rng(4)
    network = InverseDynamics(NETWORK, views, card.dims)
    trainer = InverseTrainer(network, TRAINING, ActionNormaliser.from_card(card))
    for _ in range(TRAINING.steps):
        row, t = rng.integers(len(frames), size=32), rng.integers(1, CLIP - 2, size=32)
        places = t[:, None] + np.arange(-1, 2)
        trainer.step(frames[row[:, None], places], steps[row[:, None], places])
    return InverseModel(trainer.result(), ("front", "wrist")[:views], card)


def square_profile(**changes: object) -> Embodiment:
    """Limits of the square, pixels and seconds: any step is within them, a jerk is not always."""
    fields = {
        "name": "square",
        "robots": ["square", "toy"],
        "dt": 1 / FPS,
        "names": ["delta_row", "delta_column"],
        "units": ["px", "px"],
        "velocity": [1.2 * MOST * FPS] * 2,
        "acceleration": [2.2 * MOST * FPS**2] * 2,
        "sources": dict.fromkeys(
            ("dt", "velocity", "acceleration", "jerk", "position", "weights"), "of the test"
        ),
        **changes,
    }
    return Embodiment.model_validate(fields)


def saved_model(folder: Path, *, embodiment: str = "square", labels: str = "true") -> Path:
    """The folder of a trained and measured model of one view, the first one of a clip; a profile lies beside it."""
    trained = trained_model(labels=labels)
    model = InverseModel(trained.network, ("",), motion_card(embodiment))
    model.save(folder)
    measure(model, *clips(24, seed=99), GATE).save(folder)
    square_profile().save(folder / "square.yaml")
    return folder
