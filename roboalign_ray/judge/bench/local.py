"""Local degradations: rules that degrade only a part of a clip. Pure functions, as in `corruptions`.

Each degrades a third of the clip at strength 1, and fewer frames at a lower strength: the third that the material
gives, or one drawn at random. Rules with a name that ends in `_cut`, and those that run backwards from a frame on,
continue to the end of the clip.
"""

from __future__ import annotations

import numpy as np

from roboalign_ray.judge.bench import corruptions
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.parts import THIRDS, Part, part_of

_MOVING = 16.0  # a pixel with this difference (grey levels) from the clip's median belongs to a moving object


def _part(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material, least: int = 1
) -> Part:
    third = material.third if material.third is not None else int(rng.integers(THIRDS))
    return part_of(len(frames), third, strength, rng, least)


def _placed(frames: np.ndarray, part: Part, new: np.ndarray) -> np.ndarray:
    """The clip with the part's frames replaced by these frames."""
    return np.concatenate([frames[: part.first], new, frames[part.end :]])


def _fitted(other: np.ndarray | None, frames: np.ndarray) -> np.ndarray:
    """Another clip, resized and with the same number of frames; if it is too short, its last frame is repeated."""
    assert other is not None  # `Degradation.possible` was checked before
    other = other[np.minimum(np.arange(len(frames)), len(other) - 1)]
    if other.shape[1:3] != frames.shape[1:3]:
        rows, columns = (
            np.arange(want) * have // want
            for want, have in zip(frames.shape[1:3], other.shape[1:3], strict=True)
        )
        other = other[:, rows][:, :, columns]
    return other


# --- other images --------------------------------------------------------------------------------------------------


def scene_cut(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the part on, a clip of another task."""
    part = _part(frames, strength, rng, material)
    return np.concatenate([frames[: part.first], _fitted(material.other_scene, frames)[part.first :]])


def scene_inserted(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """In the part only, a clip of another task."""
    part = _part(frames, strength, rng, material)
    return _placed(frames, part, _fitted(material.other_scene, frames)[part.first : part.end])


def episode_cut(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the part on, another episode of the same task."""
    part = _part(frames, strength, rng, material)
    return np.concatenate([frames[: part.first], _fitted(material.other_episode, frames)[part.first :]])


def episode_inserted(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """In the part only, another episode of the same task."""
    part = _part(frames, strength, rng, material)
    return _placed(frames, part, _fitted(material.other_episode, frames)[part.first : part.end])


def double_exposure(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """In the part, a clip of another task is blended in at 30 to 70 %."""
    part, share = _part(frames, strength, rng, material), rng.uniform(0.3, 0.7)
    mixed = (1 - share) * frames + share * _fitted(material.other_scene, frames)
    return _placed(frames, part, corruptions.pixels(mixed[part.first : part.end]))


def split_picture(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """In the part, one half of the image (left, right, top or bottom) is from another task."""
    part, other = _part(frames, strength, rng, material), _fitted(material.other_scene, frames)
    mixed, (height, width) = frames.copy(), frames.shape[1:3]
    halves = (
        (slice(None), slice(0, width // 2)),
        (slice(None), slice(width // 2, None)),
        (slice(0, height // 2), slice(None)),
        (slice(height // 2, None), slice(None)),
    )
    rows, columns = halves[rng.integers(len(halves))]
    mixed[part.first : part.end, rows, columns] = other[part.first : part.end, rows, columns]
    return mixed


def blank(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """The part is black, white, grey or one colour; a single frame as strength goes to 0."""
    part = _part(frames, strength, rng, material)
    colours = (np.zeros(3), np.full(3, 255), np.full(3, 128), rng.integers(0, 256, 3))
    new = np.empty_like(frames[part.first : part.end])
    new[:] = colours[rng.integers(len(colours))].astype(np.uint8)
    return _placed(frames, part, new)


# --- another order -------------------------------------------------------------------------------------------------


def local_reverse(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part runs backwards."""
    part = _part(frames, strength, rng, material, least=2)
    return _placed(frames, part, frames[part.first : part.end][::-1])


def reverse_from(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the part on, the rest of the clip runs backwards."""
    part = _part(frames, strength, rng, material, least=2)
    return np.concatenate([frames[: part.first], frames[part.first :][::-1]])


def boomerang(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """From the part on, the clip runs backwards, and forwards again once it reaches its beginning."""
    turn = max(1, _part(frames, strength, rng, material).first)
    place = np.arange(len(frames)) % (2 * turn)
    return frames[np.minimum(place, 2 * turn - place)]


def local_shuffle(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part's frames are permuted; every frame gets another position."""
    part = _part(frames, strength, rng, material, least=2)
    chosen = part.first + rng.permutation(part.length)
    source = np.arange(len(frames))
    source[chosen] = np.roll(chosen, 1)
    return frames[source]


def jump_back(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """At the end of the part the clip jumps back and continues from there, so its end is not shown.

    The jump is by the length of the part, at least two frames. It is at the latest two frames before the clip's end.
    """
    part = _part(frames, strength, rng, material)
    moment = max(2, min(part.end, len(frames) - 2))
    back = max(0, moment - max(2, part.length))
    source = np.concatenate([np.arange(moment), np.arange(back, len(frames))])
    return frames[source[: len(frames)]]


# --- another speed -------------------------------------------------------------------------------------------------


def local_freeze(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The frame before the part is repeated during the part; then the clip jumps to its regular frame."""
    part = _part(frames, strength, rng, material)
    return _placed(frames, part, np.repeat(frames[part.first - 1 : part.first], part.length, axis=0))


def stutter(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """In the part, every other frame is replaced by the previous frame."""
    part = _part(frames, strength, rng, material)
    source = np.arange(len(frames))
    source[part.first : part.end : 2] -= 1
    return frames[source]


def skip(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """The part is left out, except for the clip's last frame: the clip jumps ahead and is shorter."""
    part = _part(frames, strength, rng, material)
    end = min(part.end, len(frames) - 1)
    return np.concatenate([frames[: min(part.first, end - 1)], frames[end:]])


def rush(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """The part runs three times as fast; then its last frame is repeated until the part is over."""
    part = _part(frames, strength, rng, material, least=2)
    source = np.arange(len(frames))
    steps = np.arange(part.length) * 3 + 2
    source[part.first : part.end] = part.first + np.minimum(steps, part.length - 1)
    return frames[source]


# --- appearance ----------------------------------------------------------------------------------------------------


def light_jump(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part is half as bright, or correspondingly brighter."""
    part, share = _part(frames, strength, rng, material), rng.uniform(0.4, 0.6)
    values = frames[part.first : part.end].astype(np.float32)
    darker = rng.random() < 0.5
    return _placed(
        frames, part, corruptions.pixels(values * (1 - share) if darker else values + (255 - values) * share)
    )


def colour_jump(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part's colours are exchanged, inverted, removed or tinted."""
    part = _part(frames, strength, rng, material)
    values = frames[part.first : part.end].astype(np.float32)
    tint = np.where(np.arange(3) == rng.integers(3), 1.0, 0.4)
    looks = (
        values[..., [2, 0, 1]],
        255 - values,
        np.repeat(values.mean(axis=-1, keepdims=True), 3, axis=-1),
        values * tint,
    )
    return _placed(frames, part, corruptions.pixels(looks[rng.integers(len(looks))]))


def local_blur(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part is out of focus."""
    part = _part(frames, strength, rng, material)
    return _placed(frames, part, corruptions.blur(frames[part.first : part.end], 1.0, rng, material))


def local_noise(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part has noise."""
    part = _part(frames, strength, rng, material)
    share = rng.uniform(0.5, 1.0)
    return _placed(frames, part, corruptions.noise(frames[part.first : part.end], share, rng, material))


def pixelated(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part consists of blocks of an eighth of the height, as when a decoder loses data."""
    part = _part(frames, strength, rng, material)
    side = max(2, frames.shape[1] // 8)
    rows, columns = ((np.arange(size) // side * side + side // 2) for size in frames.shape[1:3])
    rows, columns = np.minimum(rows, frames.shape[1] - 1), np.minimum(columns, frames.shape[2] - 1)
    return _placed(frames, part, frames[part.first : part.end][:, rows][:, :, columns])


def occluded(frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material) -> np.ndarray:
    """A plain rectangle of at least half the height and width covers an area of the part that includes the centre."""
    part, covered = _part(frames, strength, rng, material), frames.copy()
    spans = []
    for size in frames.shape[1:3]:
        length = round(size * rng.uniform(0.5, 0.75))
        first = int(rng.integers(max(0, size // 2 - length) + 1, min(size // 2, size - length) + 1))
        spans.append(slice(first, first + length))
    covered[part.first : part.end, spans[0], spans[1]] = rng.integers(0, 256, 3)
    return covered


def view_jump(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The part's view changes: mirrored, upside down, zoomed by two, or shifted by a quarter of the width."""
    part = _part(frames, strength, rng, material)
    height, width = frames.shape[1:3]
    shown = frames[part.first : part.end]
    near = [(np.arange(size) // 2 + size // 4) for size in (height, width)]
    views = (
        shown[:, :, ::-1],
        shown[:, ::-1],
        shown[:, ::-1, ::-1],
        shown[:, near[0]][:, :, near[1]],
        np.roll(shown, int(rng.choice((-1, 1))) * width // 4, axis=2),
    )
    return _placed(frames, part, views[rng.integers(len(views))])


def things_vanish(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The moving arm and object disappear in the part: they are replaced by the median of all frames."""
    part = _part(frames, strength, rng, material)
    moving, behind = _moving(frames)
    return _placed(
        frames,
        part,
        np.where(moving[..., None], behind, frames)[part.first : part.end],
    )


def things_jump(
    frames: np.ndarray, strength: float, rng: np.random.Generator, material: Material
) -> np.ndarray:
    """The moving arm and object are displaced in the part by a fifth to two fifths of the height."""
    part = _part(frames, strength, rng, material)
    moving, behind = _moving(frames)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.4) * frames.shape[1]
    way = (round(length * np.sin(angle)), round(length * np.cos(angle)))
    there = np.roll(moving, way, axis=(1, 2))[..., None]
    without = np.where(moving[..., None], behind, frames)
    jumped = np.where(there, np.roll(frames, way, axis=(1, 2)), without)
    return _placed(frames, part, jumped[part.first : part.end])


def _moving(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask of moving objects, bool [T, H, W], grown by one pixel, and the median frame [H, W, 3]."""
    behind = np.median(frames, axis=0).astype(np.uint8)
    moving = np.abs(frames.astype(np.int16) - behind).mean(axis=-1) > _MOVING
    wider = moving.copy()
    for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
        wider |= np.roll(moving, step, axis=axis)
    return wider, behind
