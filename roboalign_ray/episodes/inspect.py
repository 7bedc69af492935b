"""Inspects a store: figures, and a contact sheet whose pictures and traces share one time axis.

A contact sheet shows problems that no table shows: pictures upside down, pictures of another episode, or a gripper that
does not close in the picture when its trace does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.actions import unwrap_angles
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.splits import SPLITS
from roboalign_ray.episodes.store import EpisodeStore
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.readers import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PICTURE_INCHES = 1.15  # width of one picture on the sheet
_TRACE_INCHES = 0.75
_TITLE_INCHES = 0.34
_MARGIN_INCHES = (0.9, 1.1)  # left for row names, right for legends
_LEGEND_DIMS = 8  # with more dimensions, a legend would hide the lines
_SMOOTH_SECONDS = 0.13  # motion is averaged over this time, because slow cameras repeat frames


def store_figures(store: EpisodeStore) -> dict[str, Any]:
    """Figures of a store, JSON types only.

    Returns:
        episodes, frames, hours, fps {rate: episodes}, views {"name HxW": episodes}, embodiments, splits, success,
        length {min, mean, max}, actions {dims: {names, kinds, p01, p99, ..., card}}, instructions and quarantined
        [{episode_id, reason}].

    Raises:
        UserError: the statistics or the quarantine list cannot be read.
    """
    columns = _columns(store, ["length", "fps", "embodiment"])
    lengths = np.asarray(columns["length"])
    rates = np.asarray(columns["fps"])
    statistics = store.statistics
    return {
        "store": str(store.path),
        "episodes": len(store),
        "frames": int(lengths.sum()),
        "hours": float((lengths / rates).sum() / 3600),
        "fps": {f"{rate:g}": int(count) for rate, count in sorted(Counter(rates.tolist()).items())},
        "embodiments": dict(Counter(columns["embodiment"].to_pylist())),
        **{key: statistics[key] for key in ("views", "success", "length", "instructions")},
        "splits": {split: statistics["splits"].get(split, 0) for split in SPLITS},
        "actions": {
            str(dims): {
                **statistics["actions"][str(dims)],
                "names": list(names),
                "kinds": list(kinds),
                "card": action_card_of(store, dims).as_json(),
            }
            for dims, (names, kinds) in store.action_dimensions().items()
        },
        "quarantined": _quarantined(store.path / "quarantine.json"),
    }


def _columns(store: EpisodeStore, names: list[str]) -> pa.Table:
    try:
        return pa.concat_tables([pq.read_table(shard, columns=names) for shard in store.shards])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"shards cannot be read ({first_line(error)})", where=str(store.path)) from error


def _quarantined(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    listed = read_json(path, "list of quarantined episodes")
    try:
        return [{"episode_id": str(item["episode_id"]), "reason": str(item["reason"])} for item in listed]
    except (TypeError, LookupError) as error:
        raise UserError("cannot be read as list of quarantined episodes", where=str(path)) from error


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` positions spread evenly over range(count), including first and last; all of them if there are fewer."""
    if wanted >= count:
        return list(range(count))
    return [round(position) for position in np.linspace(0, count - 1, wanted)]


def picture_change(frames: np.ndarray) -> np.ndarray:
    """Mean absolute change from each frame to the next, float [T]; frames uint8 [T, H, W, 3], the last entry is 0."""
    step = max(1, min(frames.shape[1:3]) // 64)  # a coarse grid of pixels is enough
    small = frames[:, ::step, ::step].astype(np.int16)
    change = np.zeros(len(frames))
    change[:-1] = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    return change


def state_speed(episode: Episode) -> np.ndarray:
    """Size of the state's change from each frame to the next, float [T], each dimension scaled by its root mean square.

    If state and action have the same dimensions, the state's angles are those of the action; their changes take the
    shorter way. Without a state, the actions' size is used.
    """
    if episode.state is None:
        return np.linalg.norm(_scaled(episode.actions), axis=1)
    delta = np.diff(_unwrapped(episode), axis=0)
    scale = np.sqrt((delta**2).mean(axis=0))
    speed = np.zeros(episode.length)
    speed[:-1] = np.linalg.norm(delta / np.where(scale > 1e-6, scale, np.inf), axis=1)
    return speed


def _unwrapped(episode: Episode) -> np.ndarray:
    """The state without jumps of a full turn, float64 [T, S]."""
    state = np.asarray(episode.state, dtype=np.float64)
    return unwrap_angles(state, episode.angle_dims if state.shape == episode.actions.shape else ())


def _smoothed(values: np.ndarray, fps: float) -> np.ndarray:
    window = max(1, round(fps * _SMOOTH_SECONDS))
    return np.convolve(np.pad(values, window // 2, mode="edge"), np.ones(window) / window, "same")[
        window // 2 : window // 2 + len(values)
    ]


def _scaled(values: np.ndarray) -> np.ndarray:
    """Each column scaled to [0, 1] between its extremes; a constant one is 0.5."""
    low, high = values.min(axis=0), values.max(axis=0)
    flat = high - low < 1e-9
    return np.where(flat, 0.5, (values - low) / np.where(flat, 1.0, high - low))


def contact_sheet(episodes: Sequence[Episode], path: Path, *, columns: int = 12) -> Path:
    """Write a PNG with one block per episode, time from left to right.

    A block holds the title (id, instruction, success, frames, rate), a row of pictures per view, and below them on the
    same time axis the actions, the state, and the changes of pictures and state: two curves that rise and fall together
    if video and states are in sync. A vertical line marks the time of each picture.

    Args:
        episodes: episodes to show.
        path: PNG file to write; its folder must exist.
        columns: pictures per row.

    Raises:
        UserError: there is nothing to show, or the file cannot be written.
    """
    if not episodes:
        raise UserError("no episode to show", where=str(path))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights: list[float] = []
    for episode in episodes:
        heights += _block_heights(episode)
    left, right = _MARGIN_INCHES
    width = columns * _PICTURE_INCHES + left + right
    figure = Figure(figsize=(width, sum(heights)), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(heights),
        1,
        height_ratios=heights,
        left=left / width,
        right=1 - right / width,
        top=1,
        bottom=0,
        hspace=0,
    )
    rows = iter(range(len(heights)))
    for episode in episodes:
        axes = [figure.add_subplot(grid[next(rows)]) for _ in _block_heights(episode)]
        _draw_block(episode, axes, spread(episode.length, columns))
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot be written ({reason})", where=str(path)) from error
    return path


def _block_heights(episode: Episode) -> list[float]:
    """Inches of the title, of every view's row of pictures, of the traces, and of the gap below."""
    pictures = [_PICTURE_INCHES * frames.shape[1] / frames.shape[2] for frames in episode.frames.values()]
    traces = [_TRACE_INCHES] * (2 if episode.state is None else 3)
    return [_TITLE_INCHES, *pictures, *traces, _TITLE_INCHES]


def _draw_block(episode: Episode, axes: list[Axes], moments: list[int]) -> None:
    title, *rows, gap = axes
    for empty in (title, gap):
        empty.axis("off")
    success = {True: "success", False: "failure", None: "outcome not known"}[episode.outcome.success]
    sentence = f"“{episode.instruction}”" if episode.instruction else "(no instruction)"
    text = f"{episode.episode_id}   {sentence}   {success}   {episode.length} frames at {episode.fps:g} Hz"
    title.text(0, 0.35, text, fontsize=10, weight="bold", va="center", parse_math=False)
    # The outermost pictures are centred on the first and last time, so there is half a picture's time on either side.
    half = (moments[-1] - moments[0]) / max(1, len(moments) - 1) / 2 or 0.5
    span = (moments[0] - half, moments[-1] + half)
    for axis, (view, frames) in zip(rows, episode.frames.items(), strict=False):
        _draw_pictures(axis, view, frames[moments])
    traces = rows[len(episode.frames) :]
    _draw_lines(traces[0], "actions", episode.actions, episode.action_names)
    if episode.state is not None:
        same = episode.state.shape == episode.actions.shape
        _draw_lines(traces[1], "state", _unwrapped(episode), episode.action_names if same else ())
    _draw_motion(traces[-1], episode)
    for axis in traces:
        axis.set_xlim(*span)
        axis.set_yticks([])
        axis.tick_params(axis="x", labelsize=6, pad=1)
        for moment in moments:
            axis.axvline(moment, color="0.85", linewidth=0.6, zorder=0)
        if axis is not traces[-1]:
            axis.set_xticklabels([])
    traces[-1].set_xticks(moments)
    traces[-1].set_xticklabels([str(moment) for moment in moments])


def _draw_pictures(axis: Axes, view: str, frames: np.ndarray) -> None:
    strip = np.concatenate(list(frames), axis=1)
    axis.imshow(strip, aspect="auto", interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_ylabel(view, fontsize=7)


def _draw_lines(axis: Axes, label: str, values: np.ndarray, names: Sequence[str]) -> None:
    """Every dimension between its extremes; the gripper is the thick black line, a hand's joints are thin lines."""
    time = np.arange(len(values))
    shown = _scaled(values)
    for dim in range(values.shape[1]):
        name = names[dim] if dim < len(names) else ""
        style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.8}
        if "grip" in name.lower():
            style = {"linewidth": 1.8, "color": "black"}
        elif "hand" in name.lower():
            style = {"linewidth": 0.9, "color": "black", "alpha": 0.5}
        axis.plot(time, shown[:, dim], label=name, **style)
    axis.set_ylim(-0.08, 1.08)
    axis.set_ylabel(label, fontsize=7)
    if label == "actions" and names and values.shape[1] <= _LEGEND_DIMS:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=4.5, frameon=False, handlelength=1)


def _draw_motion(axis: Axes, episode: Episode) -> None:
    time = np.arange(episode.length) + 0.5  # a change is between two frames
    for view, frames in episode.frames.items():
        change = _smoothed(picture_change(frames), episode.fps)
        axis.plot(time, change / (change.max() or 1.0), linewidth=0.9, label=f"{view} change")
    speed = _smoothed(state_speed(episode), episode.fps)
    label = "action size" if episode.state is None else "state speed"
    axis.plot(time, speed / (speed.max() or 1.0), color="black", linewidth=1.2, linestyle="--", label=label)
    axis.set_ylim(-0.05, 1.1)
    axis.set_ylabel("motion", fontsize=7)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=4.5, frameon=False, handlelength=1)
