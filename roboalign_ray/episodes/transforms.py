"""Changes the picture size and the frame rate of episodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from roboalign_ray.episodes.action_evidence import turns_in, unwrapped
from roboalign_ray.episodes.action_kinds import UNKNOWN, accumulate_actions
from roboalign_ray.episodes.action_names import unit_of
from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.shaped_frames import ShapedFrames
from roboalign_ray.foundation.failures import UserError

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = get_args(Fit)


def target_size(source: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) in pixels; a missing one follows from the other and the source's aspect, made even.

    Raises:
        UserError: a size is below 2 pixels.
    """
    for name, size in (("height", height), ("width", width)):
        if size is not None and size < 2:
            raise UserError(f"{name} is {size}", where=f"--{name}", remedy="give at least 2 pixels")
    if height is None and width is None:
        return source
    if height is None:
        height = max(2, 2 * round(source[0] * (width or 0) / source[1] / 2))
    if width is None:
        width = max(2, 2 * round(source[1] * height / source[0] / 2))
    return height, width


def resize_frames(frames: np.ndarray, height: int, width: int, fit: Fit = "stretch") -> np.ndarray:
    """Resize frames, filtered so that small objects do not alias.

    Args:
        frames: uint8 [T, H, W, 3], or a stand-in for frames that were resized to this size before.
        height, width: pixels.
        fit: if the aspect differs, "stretch" distorts, "crop" cuts the longer sides evenly, and "pad" adds black
            bars.

    Returns:
        uint8 [T, height, width, 3].
    """
    if isinstance(frames, ShapedFrames):
        return frames.resized(height, width)
    if frames.shape[1:3] == (height, width):
        return frames
    rows, columns = frames.shape[1:3]
    if fit == "crop":
        scale = max(height / rows, width / columns)
        kept_rows, kept_columns = min(rows, round(height / scale)), min(columns, round(width / scale))
        top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
        return _resample(frames[:, top : top + kept_rows, left : left + kept_columns], height, width)
    if fit == "pad":
        scale = min(height / rows, width / columns)
        inner_rows = min(height, max(1, round(rows * scale)))
        inner_columns = min(width, max(1, round(columns * scale)))
        padded = np.zeros((len(frames), height, width, 3), np.uint8)
        top, left = (height - inner_rows) // 2, (width - inner_columns) // 2
        padded[:, top : top + inner_rows, left : left + inner_columns] = _resample(
            frames, inner_rows, inner_columns
        )
        return padded
    return _resample(frames, height, width)


def _resample(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for t, frame in enumerate(frames):
        picture = Image.fromarray(np.ascontiguousarray(frame))
        out[t] = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    return out


def unwrap_episode(episode: Episode) -> Episode:
    """The episode with unwrapped action angles.

    Angles whose name gives the unit always take the shorter way from frame to frame. Other angles, positions and
    dimensions of unknown kind are unwrapped if their range is that of wrapped angles and they jump from one end to
    the other. The provenance lists the unwrapped dimensions as `unwrapped`. Actions that need no unwrapping stay equal
    bit for bit.
    """
    actions, kinds = np.array(episode.actions), list(episode.action_kinds)
    found = []
    for dim, kind in enumerate(kinds):
        if kind not in ("angle", "absolute", UNKNOWN):
            continue
        name = episode.action_names[dim] if dim < len(episode.action_names) else f"action[{dim}]"
        unit = unit_of(name)
        known = kind == "angle" and unit.startswith(("deg", "°", "rad"))
        turn = turns_in(actions[:, dim], degrees=not unit.startswith("rad") if known else None)
        if turn:
            actions[:, dim] = unwrapped(actions[:, dim], turn)
            kinds[dim] = "angle"
            found.append(name)
    if not found:
        return episode
    return replace(
        episode,
        actions=actions,
        action_kinds=tuple(kinds),
        provenance={**episode.provenance, "unwrapped": found},
    )


def stride_episode(episode: Episode, stride: int) -> Episode:
    """Every `stride`-th frame; the actions in between are accumulated, so that no motion is lost.

    Frames, state and labels are those of the kept frames; labels of the time between two frames (contact, force,
    penetration) keep their value at the frame.

    Raises:
        EpisodeError: the episode is shorter than two strides.
        UserError: the kind of an action dimension is unknown, or its numbers cannot be added.
    """
    if stride == 1:
        return episode
    if episode.length <= stride:
        raise EpisodeError(
            f"{episode.length} frames are too few for stride {stride}", where=episode.episode_id
        )
    outcome = episode.outcome
    per_frame = outcome.success_per_frame
    return replace(
        episode,
        frames={view: pictures[::stride] for view, pictures in episode.frames.items()},
        actions=accumulate_actions(
            episode.actions,
            episode.action_kinds,
            stride,
            names=episode.action_names,
            where=episode.episode_id,
        ),
        state=None if episode.state is None else episode.state[::stride],
        fps=episode.fps / stride,
        outcome=replace(
            outcome,
            success_per_frame=None if per_frame is None else per_frame[::stride],
            privileged={name: values[::stride] for name, values in outcome.privileged.items()},
        ),
        provenance={**episode.provenance, "stride": stride},
    )


def resize_episode(episode: Episode, height: int | None, width: int | None, fit: Fit = "stretch") -> Episode:
    """The episode with every view at another size; the provenance gets the original size and the fit."""
    if height is None and width is None:
        return episode
    frames = {
        view: resize_frames(pictures, *target_size(pictures.shape[1:3], height, width), fit)
        for view, pictures in episode.frames.items()
    }
    original = {view: list(pictures.shape[1:3]) for view, pictures in episode.frames.items()}
    provenance = {**episode.provenance, "resized_from": original, "fit": fit}
    return replace(episode, frames=frames, provenance=provenance)
