"""The rules of the degradations: pure NumPy functions of (frames, strength, generator, material).

Frames are uint8 [T, H, W, 3] with T >= 4; strength is in (0, 1]. Lengths in pixels are shares of the image height, so
that a strength has the same effect at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.judge.bench.masks import inpaint


@dataclass(frozen=True)
class Material:
    """Additional inputs of some rules; None if not available.

    Attributes:
        object_mask, gripper_mask: bool [T, H, W].
        other_frames: uint8 [T, H, W, 3], a clip with the same start and length but other actions.
        other_instruction: an instruction for another task.
        done: frame in which the task counts as done.
        other_scene: uint8 [T', H', W', 3], a clip of another task.
        other_episode: uint8 [T', H', W', 3], a clip of the same task from another start.
        third: third of the clip, 0 to 2, that a local rule degrades; None draws one.
    """

    object_mask: np.ndarray | None = None
    gripper_mask: np.ndarray | None = None
    other_frames: np.ndarray | None = None
    other_instruction: str | None = None
    done: int | None = None
    other_scene: np.ndarray | None = None
    other_episode: np.ndarray | None = None
    third: int | None = None


def _onset(frames: np.ndarray, strength: float) -> int:
    """First degraded frame: frame 1 at strength 1, the last frame as strength goes to 0."""
    last = len(frames) - 1
    return int(np.clip(round(1 + (1 - strength) * (last - 1)), 1, last))


def pixels(values: np.ndarray) -> np.ndarray:
    """Round grey levels and clip them to 0 to 255."""
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def unchanged(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The unchanged frames, for degradations that change only the instruction."""
    return frames.copy()


def blur(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Gaussian blur with a sigma of up to 6 % of the height."""
    sigma = 0.06 * strength * frames.shape[1]
    reach = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    values = frames.astype(np.float32)
    for axis in (1, 2):
        length = values.shape[axis]
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in range(4)], mode="edge")
        values = np.zeros_like(values)
        for shift, weight in enumerate(weights):
            values += np.float32(weight) * np.take(padded, range(shift, shift + length), axis=axis)
    return pixels(values)


def noise(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Gaussian noise of up to 60 grey levels."""
    return pixels(frames + rng.normal(0, 60 * strength, frames.shape))


def freeze(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """The frame before the onset is repeated until the end."""
    onset = _onset(frames, strength)
    return frames[np.minimum(np.arange(len(frames)), onset - 1)]


def drop_frames(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """Up to 80 % of the frames, never the first or the last, are replaced by the previous frame."""
    inner = np.arange(1, len(frames) - 1)
    count = min(len(inner), max(1, round(0.8 * strength * len(inner))))
    source = np.arange(len(frames))
    for number in np.sort(rng.choice(inner, count, replace=False)):
        source[number] = source[number - 1]
    return frames[source]


def shuffle(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """A share of the frames is permuted; each chosen frame gets another position."""
    count = max(2, round(strength * len(frames)))
    chosen = rng.choice(len(frames), count, replace=False)
    source = np.arange(len(frames))
    source[chosen] = np.roll(chosen, 1)  # a cyclic permutation of random positions
    return frames[source]


def reverse(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """The last part of the clip runs backwards; at strength 1 the whole clip."""
    count = max(2, round(strength * len(frames)))
    return np.concatenate([frames[: len(frames) - count], frames[len(frames) - count :][::-1]])


def speed_up(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Up to three times as fast; then the last frame is repeated."""
    source = np.rint(np.arange(len(frames)) * (1 + 2 * strength)).astype(int)
    return frames[np.minimum(source, len(frames) - 1)]


def slow_down(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """Down to a quarter of the speed; intermediate frames are interpolated."""
    place = np.arange(len(frames)) * (1 - 0.75 * strength)
    low = np.floor(place).astype(int)
    share = (place - low)[:, None, None, None]
    high = np.minimum(low + 1, len(frames) - 1)
    return pixels((1 - share) * frames[low] + share * frames[high])


def texture_drift(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """Pixels drift along a smooth random field, by up to 12 % of the height at the end."""
    height, width = frames.shape[1:3]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    field = np.zeros((2, height, width))
    for axis in range(2):
        for _ in range(3):
            waves, phase = rng.uniform(0.5, 2.5, 2), rng.uniform(0, 2 * np.pi)
            field[axis] += np.sin(2 * np.pi * (waves[0] * rows / height + waves[1] * columns / width) + phase)
    field *= 0.12 * strength * height / max(np.abs(field).max(), 1e-9)
    drifted = []
    for number, frame in enumerate(frames):
        reach = number / (len(frames) - 1)
        row = np.clip(np.rint(rows + reach * field[0]), 0, height - 1).astype(int)
        column = np.clip(np.rint(columns + reach * field[1]), 0, width - 1).astype(int)
        drifted.append(frame[row, column])
    return np.stack(drifted)


def flicker(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Every other frame is darker, by 30 to 60 % at strength 1."""
    gain = 1 - strength * rng.uniform(0.3, 0.6, len(frames)) * (np.arange(len(frames)) % 2)
    return pixels(frames * gain[:, None, None, None])


def object_vanish(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the onset on, the object is inpainted from its surroundings."""
    return _erased(frames, material.object_mask, _onset(frames, strength))


def gripper_erased(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the onset on, the gripper is inpainted from its surroundings."""
    return _erased(frames, material.gripper_mask, _onset(frames, strength))


def object_duplicate(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the onset on, a copy of the object is shown, 30 % of the height away."""
    away = _shift(frames, material.object_mask, 0.3, rng)
    return _copied(frames, material.object_mask, _onset(frames, strength), away)


def teleport(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """From the middle on, the object is displaced by up to 35 % of the height."""
    onset, away = len(frames) // 2, _shift(frames, material.object_mask, 0.35 * strength, rng)
    copied = _copied(frames, material.object_mask, onset, away)
    mask = _full(material.object_mask, frames)
    stays = mask & ~np.roll(mask, away, axis=(1, 2))
    return _erased(copied, stays, onset)


def wrong_actions(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the onset on, the frames of a clip with the same start but other actions."""
    onset = _onset(frames, strength)
    return np.concatenate([frames[:onset], _full(material.other_frames, frames)[onset:]])


def truncated(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The clip ends early, before the task is done if that is known.

    At strength 1 it ends after 30 % of the frames, but it has at least two frames.
    """
    end = min(material.done or len(frames), len(frames) - 1)
    return frames[: max(2, min(end, round((1 - 0.7 * strength) * end)))]


def static_noise(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """Frames are blended with independent noise; at strength 1 only noise is left."""
    grain = rng.integers(0, 256, frames.shape)
    return pixels((1 - strength) * frames + strength * grain)


def ghosting(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Each frame is blended with the temporal mean."""
    return pixels((1 - strength) * frames + strength * frames.mean(axis=0, keepdims=True))


def loop(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """The beginning repeats; its length falls with strength from 90 % of the clip to a quarter."""
    period = max(2, min(len(frames) - 1, round((0.95 - 0.7 * strength) * len(frames))))
    return frames[np.arange(len(frames)) % period]


def _full(array: np.ndarray | None, frames: np.ndarray) -> np.ndarray:
    """The material with one entry per frame; if it is too short, its last entry is repeated."""
    assert array is not None  # `Degradation.possible` was checked before
    return array[np.minimum(np.arange(len(frames)), len(array) - 1)]


def _erased(frames: np.ndarray, mask: np.ndarray | None, onset: int) -> np.ndarray:
    mask = _full(mask, frames)
    return np.concatenate([frames[:onset], inpaint(frames[onset:], mask[onset:])])


def _shift(
    frames: np.ndarray, mask: np.ndarray | None, share: float, rng: np.random.Generator
) -> tuple[int, int]:
    """A displacement [rows, columns] by this share of the height: horizontal, to the side with more room."""
    columns = np.nonzero(_full(mask, frames))[2]
    right = not len(columns) or columns.mean() < frames.shape[2] / 2
    angle = rng.uniform(-0.4, 0.4) + (0.0 if right else np.pi)
    length = max(2.0, share * frames.shape[1])
    return round(length * np.sin(angle)), round(length * np.cos(angle))


def _copied(frames: np.ndarray, mask: np.ndarray | None, onset: int, way: tuple[int, int]) -> np.ndarray:
    mask = _full(mask, frames)
    moved = np.roll(mask, way, axis=(1, 2))
    copied = np.where(moved[..., None], np.roll(frames, way, axis=(1, 2)), frames)
    return np.concatenate([frames[:onset], copied[onset:]])
