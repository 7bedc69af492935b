"""Where a rollout starts, from a picture and a file of actions, or from a window of an episode."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.readers import parse_json, read_bytes
from roboalign_ray.pipelines.preflight.actions import compare_actions, store_card
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import ModelCard, Prompt

_MOST_ACTION_BYTES = 64 << 20
_MOST_PICTURE_BYTES = 64 << 20
_FORMATS = ".npy, .csv or .json"


@dataclass(frozen=True)
class RolloutStart:
    """What a rollout starts from.

    Attributes:
        prompt: start frame, actions and instruction.
        real: uint8 [T, V, H, W, 3], the real continuation, where there is one.
        fps: frames per second of the actions; None where nothing tells.
        embodiment: robot name; "" where nothing tells.
        action_names, action_kinds: of the episode; () if unknown.
        views: names of the views; () if unknown.
        notes: what was changed on the way, one line each.
    """

    prompt: Prompt
    real: np.ndarray | None = None
    fps: float | None = None
    embodiment: str = ""
    action_names: tuple[str, ...] = ()
    action_kinds: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def start_from_episode(
    config: JobConfig, card: ModelCard, episode_id: str, start: int, horizon: int
) -> RolloutStart:
    """A window of an episode of the job's store: its frame and its actions; the frames after it to compare with.

    Args:
        start: number of the start frame, before the stride.
        horizon: frames to predict.

    Raises:
        UserError: no such episode, it is too short, or its actions mean something else than the world model's.
    """
    store = open_store(config.episodes.store)
    if episode_id not in store.ids:
        first = f"; the first one is '{store.ids[0]}'" if store.ids else ""
        raise UserError(
            f"no episode '{episode_id}' in {config.episodes.store}{first}",
            where="--episode",
            remedy="'roboalign episodes inspect STORE' lists some",
        )
    episodes, model = config.episodes, Path(config.world_model_weights)
    own = store_card(store, episodes)
    notes = compare_actions(store, own, model, card.actions, episodes.frame_stride)
    reader = PromptReader(config.episodes, card.height, card.width, card.views)
    name = PromptName(episode_id, start, horizon)
    real = reader.recorded(name, horizon)
    return RolloutStart(
        reader.prompt(name, horizon),
        real.frames[1:],
        real.fps,
        real.embodiment,
        real.action_names,
        real.action_kinds,
        real.views,
        tuple(notes),
    )


def start_from_picture(
    card: ModelCard, picture: Path, actions: Path, instruction: str, horizon: int | None
) -> RolloutStart:
    """A picture, and as many frames as the file has actions.

    Args:
        horizon: take this many of the actions; None takes all.

    Raises:
        UserError: a file cannot be read, or the actions do not fit the world model.
    """
    if card.views != 1:
        raise UserError(
            f"the world model predicts {card.views} views, a picture shows one",
            where="--image",
            remedy="start from an episode: --episode",
        )
    pixels = decode_picture(read_bytes(picture, "picture", most_bytes=_MOST_PICTURE_BYTES), str(picture))
    frame = resize_frames(pixels[None], card.height, card.width)[0]
    size = f"{card.height}x{card.width}"
    notes = (
        (f"{picture.name}: {pixels.shape[0]}x{pixels.shape[1]} pixels resized to {size}",)
        if pixels.shape[:2] != (card.height, card.width)
        else ()
    )
    values = read_actions(actions, card.action_dims)
    if horizon is not None and horizon > len(values):
        raise UserError(
            f"{horizon} frames want as many actions, {actions} has {len(values)}", where="--horizon"
        )
    values = values[:horizon]
    prompt, actions_card = Prompt(picture.stem, frame, frame, values, instruction), card.actions
    if actions_card is None:
        return RolloutStart(prompt, notes=notes)
    robot = actions_card.embodiments[0] if len(actions_card.embodiments) == 1 else ""
    names, kinds = actions_card.labels, actions_card.kinds
    return RolloutStart(prompt, None, card.fps, robot, names, kinds, notes=notes)


def read_actions(path: Path, dims: int) -> np.ndarray:
    """Actions float32 [T, dims] from a NumPy file, a CSV table or a JSON list of lists; CSV may begin with names.

    Raises:
        UserError: another format, damaged, not finite, or of another width.
    """
    data = read_bytes(path, "file of actions", most_bytes=_MOST_ACTION_BYTES)
    try:
        if path.suffix == ".npy":
            values = np.load(io.BytesIO(data), allow_pickle=False)
        elif path.suffix == ".csv":
            values = _table(data.decode("utf-8-sig"))
        elif path.suffix == ".json":
            values = np.asarray(parse_json(data, where=str(path), what="list of actions"), dtype=np.float64)
        else:
            raise UserError("is of no known format", where=str(path), remedy=f"actions come as {_FORMATS}")
        numbers = np.asarray(values).astype(np.float32)
    except (ValueError, TypeError, EOFError, csv.Error) as error:
        raise UserError(f"holds no table of numbers ({first_line(error)[:120]})", where=str(path)) from error
    if numbers.ndim != 2 or not len(numbers) or numbers.shape[1] != dims:
        raise UserError(
            f"actions have the shape {list(numbers.shape)}, the world model takes [T, {dims}]",
            where=str(path),
        )
    if not np.isfinite(numbers).all():
        row, dim = np.argwhere(~np.isfinite(numbers))[0]
        raise UserError(f"action {row}, dimension {dim}, is {numbers[row, dim]}", where=str(path))
    return numbers


def _table(text: str) -> np.ndarray:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and not _are_numbers(rows[0]):
        rows = rows[1:]
    return np.array([[float(cell) for cell in row] for row in rows])


def _are_numbers(row: list[str]) -> bool:
    try:
        _ = [float(cell) for cell in row]
    except ValueError:
        return False
    return True
