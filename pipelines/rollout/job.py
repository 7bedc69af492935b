"""Roll out a world model from a picture or an episode, and write what it predicts.

    out/
      rollout.mp4      real frames where there are some, then every sample; views below each other
      rollout.gif      the same
      dataset/         a LeRobot v3.0 dataset: one episode per sample
      rollout.json     model, seeds, actions: what it takes to make it again

One process, no Ray: a rollout of a small model takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.action_kinds import ActionKind
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.lerobot_writer import write_lerobot
from roboalign_ray.episodes.video import encode_browser_video
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.folder_lock import one_writer
from roboalign_ray.foundation.telemetry.metrics import encode_gif
from roboalign_ray.pipelines.cluster.weight_folders import SHIPPED, world_model_folder
from roboalign_ray.pipelines.rollout.inputs import RolloutStart, start_from_episode, start_from_picture
from roboalign_ray.world_model.protocol import WorldModel
from roboalign_ray.world_model.registry import open_world_model

_DEFAULT_FPS = 5.0  # where neither the model nor an episode tells
_GAP = 1  # pixels between panels
_GAP_GREY = 24
_PANEL_PIXELS = 256  # panels are enlarged by a whole factor to about this height
_STILL = (
    "delta",
    "delta_angle",
    "delta_rotation",
    "velocity",
    "toggle",
    "event",
)  # kinds of which 0 means: do nothing


@dataclass(frozen=True)
class RolloutRequest:
    """What to roll out.

    Attributes:
        image, actions: files; or else
        episode, start: an episode of the job's store and the number of its start frame.
        instruction: with an image; an episode has its own.
        horizon: frames; None takes all actions of a file, or the job's rollout horizon.
        samples: rollouts, each with its own seed.
        seed: of the first sample; the others count on from it.
    """

    image: Path | None = None
    actions: Path | None = None
    episode: str | None = None
    start: int = 0
    instruction: str = ""
    horizon: int | None = None
    samples: int = 1
    seed: int = 0

    def check(self) -> None:
        """That the request is complete.

        Raises:
            UserError: it names neither or both of an image and an episode, or an image without actions.
        """
        if (self.image is None) == (self.episode is None):
            raise UserError(
                "a rollout starts from an image or from an episode",
                where="roboalign rollout",
                remedy="give --image with --actions, or --episode",
            )
        if self.image is not None and self.actions is None:
            raise UserError(
                "an image needs actions", where="--actions", remedy="give a .npy, .csv or .json file"
            )
        if self.episode is not None and (self.actions is not None or self.instruction):
            raise UserError(
                "an episode brings its own actions and instruction",
                where="--episode",
                remedy="leave out --actions and --instruction",
            )


@dataclass(frozen=True)
class RolloutFiles:
    """What was written.

    Attributes:
        out: folder.
        frames: uint8 [samples, T, V, H, W, 3].
        notes: what a user should know, one line each.
    """

    out: Path
    frames: np.ndarray
    notes: tuple[str, ...]


@one_writer
def run_rollout(config: JobConfig, request: RolloutRequest, out: Path) -> RolloutFiles:
    """Roll out and write the files; nothing appears at `out` before all is written.

    Args:
        config: the world model, how it samples and refreshes, and the store of an episode.
        out: must not exist, or be empty.

    Raises:
        UserError: the request or a file cannot be used, or `out` is taken.
    """
    request.check()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "exists already and is not empty", where=str(out), remedy="name another folder: --out"
        )
    model = _model(config)
    start = _start(config, request, model)
    seeds = tuple(range(request.seed, request.seed + request.samples))
    state = model.begin([start.prompt], [seeds])
    state = model.step(state, np.asarray(start.prompt.actions, np.float32)[None])
    frames = model.frames(state)
    fps = start.fps or _DEFAULT_FPS
    notes = start.notes if start.fps else (*start.notes, f"frames per second unknown; written at {fps:g}")
    with complete_or_absent(out) as draft:
        film = _panels(start, frames)
        (draft / "rollout.mp4").write_bytes(encode_browser_video(film, fps))
        (draft / "rollout.gif").write_bytes(encode_gif(film, fps))
        write_lerobot(_episodes(start, frames, fps), draft / "dataset")
        description = _description(config, request, start, model, seeds)
        (draft / "rollout.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return RolloutFiles(out, frames, notes)


def _model(config: JobConfig) -> WorldModel:
    # A folder remembers its tokenizer; one that is named in the profile must be the same.
    tokenizer = None if config.tokenizer_weights == SHIPPED else config.tokenizer_weights
    return open_world_model(world_model_folder(config), config.rollout, tokenizer=tokenizer)


def _start(config: JobConfig, request: RolloutRequest, model: WorldModel) -> RolloutStart:
    if request.episode is not None:
        horizon = request.horizon or config.rollout.horizon
        return start_from_episode(config, model.card, request.episode, request.start, horizon)
    assert request.image is not None
    assert request.actions is not None
    return start_from_picture(
        model.card, request.image, request.actions, request.instruction, request.horizon
    )


def _panels(start: RolloutStart, frames: np.ndarray) -> np.ndarray:
    """The start frame and what follows, uint8 [T + 1, H', W', 3]: a column per clip, a row per view, enlarged."""
    clips = list(frames) if start.real is None else [start.real, *frames]
    first = start.prompt.start[None]
    columns = []
    for clip in clips:
        whole = np.concatenate([first, clip])  # [T + 1, V, H, W, 3]
        columns.append(_joined([whole[:, view] for view in range(whole.shape[1])], axis=1))
    film = _joined(columns, axis=2)
    scale = max(1, round(_PANEL_PIXELS / frames.shape[3]))
    return film.repeat(scale, axis=1).repeat(scale, axis=2)


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Clips [T, H, W, 3] beside each other along an axis, a dark line between two."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, _GAP_GREY, np.uint8)
    return np.concatenate([piece for part in parts for piece in (gap, part)][1:], axis=axis)


def _episodes(start: RolloutStart, frames: np.ndarray, fps: float) -> list[Episode]:
    """One per sample: the start frame and what was predicted. The last action does nothing: no frame follows it."""
    actions = np.asarray(start.prompt.actions, np.float32)
    kinds = start.action_kinds or ("unknown",) * actions.shape[1]
    last = np.array(
        [0.0 if kind in _STILL else value for kind, value in zip(kinds, actions[-1], strict=True)]
    )
    padded = np.concatenate([actions, last[None].astype(np.float32)])
    whole = [np.concatenate([start.prompt.start[None], sample]) for sample in frames]
    views = _view_names(start.views, frames.shape[2])
    return [
        Episode(
            episode_id=f"rollout/{number}",
            group_id="rollout",
            frames={view: clip[:, place] for place, view in enumerate(views)},
            actions=padded,
            instruction=start.prompt.instruction,
            fps=fps,
            embodiment=start.embodiment or "unknown",
            action_names=start.action_names,
            action_kinds=cast(tuple[ActionKind, ...], kinds),
        )
        for number, clip in enumerate(whole)
    ]


def _view_names(names: Sequence[str], views: int) -> list[str]:
    """Names as they can name folders; view_0, view_1, … if there are none, or if two would become the same."""
    usable = [name.replace("/", "_").lstrip(".") for name in names]
    alike = len(set(usable)) != views or not all(usable)
    return [f"view_{number}" for number in range(views)] if alike else usable


def _description(
    config: JobConfig, request: RolloutRequest, start: RolloutStart, model: WorldModel, seeds: tuple[int, ...]
) -> dict[str, Any]:
    """Contents of `rollout.json`: what made the rollout, in JSON types."""
    options = {
        key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()
    }
    return {
        "world_model": config.world_model_weights,
        "card": model.card.as_json(),
        "rollout": config.rollout.public(),
        "request": options,
        "instruction": start.prompt.instruction,
        "seeds": list(seeds),
        "actions": np.asarray(start.prompt.actions, np.float32).tolist(),
    }
