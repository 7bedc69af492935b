"""Converts an episode to a Parquet row and back. Defines the store's schema.

Arrays with the same width for all frames are nested lists, which any Parquet tool can read; simulator labels of any
shape are raw bytes, with type and shape beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionKind, names_of
from roboalign_ray.episodes.action_names import as_target, kind_from_name
from roboalign_ray.episodes.episode import Episode, EpisodeError, Outcome
from roboalign_ray.episodes.shaping import MOST_EPISODE_PIXELS
from roboalign_ray.episodes.stored_video import decode_stored_video
from roboalign_ray.foundation.storage.readers import parse_json

SCHEMA_VERSION = 1
INDEX_COLUMNS = ("episode_id", "group_id", "instruction", "length")

_ARRAY = pa.struct(
    [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int32())), ("data", pa.binary())]
)
ROW_SCHEMA = pa.schema(
    [
        ("episode_id", pa.string()),
        ("group_id", pa.string()),
        ("instruction", pa.string()),
        ("length", pa.int32()),
        ("fps", pa.float64()),
        ("embodiment", pa.string()),
        ("views", pa.list_(pa.struct([("name", pa.string()), ("video", pa.large_binary())]))),
        ("actions", pa.list_(pa.list_(pa.float32()))),
        ("action_names", pa.list_(pa.string())),
        ("action_kinds", pa.list_(pa.string())),
        ("state", pa.list_(pa.list_(pa.float32()))),
        ("success", pa.bool_()),
        ("success_per_frame", pa.list_(pa.bool_())),
        ("privileged", pa.list_(_ARRAY)),
        ("provenance", pa.string()),
    ],
    metadata={"roboalign_ray.schema_version": str(SCHEMA_VERSION)},
)

# Accepted columns: stores of earlier versions hold angle_dims in place of action_kinds.
READ_SCHEMA = ROW_SCHEMA.append(pa.field("angle_dims", pa.list_(pa.int32())))
OPTIONAL_COLUMNS = ("action_kinds", "angle_dims")

# Names that our own sources used before kinds were stored, where the name alone does not determine the gripper's kind.
_POSE = ("delta_x [m]", "delta_y [m]", "delta_z [m]")
_TURN = ("delta_roll [rad]", "delta_pitch [rad]", "delta_yaw [rad]")
_NAMES_OF_OURS: Mapping[tuple[str, ...], tuple[ActionKind, ...]] = {
    (*_POSE, *_TURN, "gripper"): (*("delta",) * 3, *("delta_angle",) * 3, "hold"),
    (*_POSE, "gripper [-1 open, 1 closed]"): (*("delta",) * 3, "hold"),
}


def episode_to_row(episode: Episode, *, crf: int, pixel_format: str) -> dict[str, Any]:
    """A row of `ROW_SCHEMA`, with encoded frames.

    Raises:
        EpisodeError: the frames cannot be encoded, or the provenance is not JSON.
    """
    from roboalign_ray.episodes.video import encode_video  # needs PyAV, which reading does not

    try:
        provenance = json.dumps(dict(episode.provenance))
    except TypeError as error:
        raise EpisodeError(f"provenance is not JSON ({error})", where=episode.episode_id) from error
    outcome = episode.outcome
    return {
        "episode_id": episode.episode_id,
        "group_id": episode.group_id,
        "instruction": episode.instruction,
        "length": episode.length,
        "fps": float(episode.fps),
        "embodiment": episode.embodiment,
        "views": [
            {"name": name, "video": encode_video(frames, episode.fps, crf=crf, pixel_format=pixel_format)}
            for name, frames in episode.frames.items()
        ],
        "actions": np.asarray(episode.actions, dtype=np.float32).tolist(),
        "action_names": list(episode.action_names),
        "action_kinds": list(episode.action_kinds),
        "state": None if episode.state is None else np.asarray(episode.state, dtype=np.float32).tolist(),
        "success": outcome.success,
        "success_per_frame": (
            None
            if outcome.success_per_frame is None
            else np.asarray(outcome.success_per_frame, dtype=bool).tolist()
        ),
        "privileged": [_pack(name, array) for name, array in outcome.privileged.items()],
        "provenance": provenance,
    }


def row_to_episode(row: Mapping[str, Any]) -> Episode:
    """The episode of a row, with decoded video.

    Raises:
        EpisodeError: the video cannot be decoded, or the row contradicts itself.
        ValueError, TypeError, LookupError: a value has another type than `episode_to_row` writes.
    """
    try:
        frames = {
            view["name"]: decode_stored_video(view["video"], most_pixels=MOST_EPISODE_PIXELS)
            for view in row["views"]
        }
    except EpisodeError as error:
        raise EpisodeError(error.what, where=row["episode_id"]) from error
    actions = np.asarray(row["actions"], dtype=np.float32).reshape(row["length"], -1)
    per_frame = row["success_per_frame"]
    outcome = Outcome(
        success=row["success"],
        success_per_frame=None if per_frame is None else np.asarray(per_frame, dtype=bool),
        privileged={item["name"]: _unpack(item) for item in row["privileged"]},
    )
    return Episode(
        episode_id=row["episode_id"],
        group_id=row["group_id"],
        frames=frames,
        actions=actions,
        instruction=row["instruction"],
        fps=row["fps"],
        embodiment=row["embodiment"],
        action_names=tuple(row["action_names"]),
        action_kinds=kinds_of_row(row, actions.shape[1]),
        state=None if row["state"] is None else np.asarray(row["state"], dtype=np.float32),
        outcome=outcome,
        provenance=parse_json(row["provenance"], where=row["episode_id"], what="provenance"),
    )


def kinds_of_row(row: Mapping[str, Any], dims: int) -> tuple[ActionKind, ...]:
    """The kinds of a row's action dimensions.

    Rows from before kinds were stored have none: there the names decide, and the dimensions listed as angles.

    Args:
        row: with "action_names", and "action_kinds" or "angle_dims".
        dims: number of dimensions of its actions.
    """
    if row.get("action_kinds") is not None:
        return tuple(row["action_kinds"])
    names, angles = names_of(row["action_names"], dims), row.get("angle_dims") or ()
    if names in _NAMES_OF_OURS:
        return _NAMES_OF_OURS[names]
    kinds = [kind_from_name(name) for name in names]
    return tuple(
        kind or (as_target(f"{name} [rad]") if dim in angles else UNKNOWN)
        for dim, (name, kind) in enumerate(zip(names, kinds, strict=True))
    )


def _pack(name: str, array: np.ndarray) -> dict[str, Any]:
    array = np.asarray(array)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    return {"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def _unpack(item: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(item["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"'{item['name']}' holds {dtype}, not numbers")
    return np.frombuffer(item["data"], dtype=dtype).reshape(item["shape"]).copy()
