"""A diffusion state as arrays of numbers and back, so that it can travel to another process or lie in a file.

Frames and actions are all that there is: the next clip follows from them and the seeds. The process that loads a state
holds the weights already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.readers import parse_json
from roboalign_ray.world_model.diffusion.state import DiffusionState, SegmentStart, Weights
from roboalign_ray.world_model.protocol import ModelCard
from roboalign_ray.world_model.refresh import RefreshPlan

_WHERE = "saved state"
_PLAIN = ("given", "own_actions", "begin_seconds")
_ARRAYS = ("context", "known", "actions")


def state_arrays(state: DiffusionState) -> dict[str, np.ndarray]:
    """The arrays; "header" is JSON text as uint8."""
    header = {
        "prompts": list(state.prompts),
        "seeds": list(state.seeds),
        "segments": [asdict(segment) for segment in state.segments],
        **{name: getattr(state, name) for name in _PLAIN},
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "seconds": np.array(state.seconds),
        **{name: getattr(state, name) for name in _ARRAYS},
    }
    return arrays | {f"clip{number}": clip for number, clip in enumerate(state.clips)}


def state_from_arrays(
    arrays: Mapping[str, np.ndarray], card: ModelCard, refresh: RefreshPlan, held: Weights
) -> DiffusionState:
    """Inverse of `state_arrays`.

    Args:
        card, refresh: of the model that the state is for.
        held: its weights.

    Raises:
        UserError: these are no state of such a model, or its segment under way was begun with other weights.
    """
    try:
        header = parse_json(arrays["header"].tobytes(), where=_WHERE, what="state")
        state = _read(header, arrays, card)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"is not a state of this world model ({first_line(error)})", where=_WHERE) from error
    last = state.segments[-1] if state.segments else None
    if last is None or refresh.left(state.total - last.first) == 0:
        return state
    if last.version != held.version:
        raise UserError(
            f"its segment under way was begun with weight version {last.version}, the world model holds "
            f"{held.version}",
            where=_WHERE,
            remedy="load the weights of that version first",
        )
    return DiffusionState(**{**vars(state), "weights": held})


def _read(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], card: ModelCard) -> DiffusionState:
    clips = sum(name.startswith("clip") for name in arrays)
    state = DiffusionState(
        prompts=tuple((str(name), str(instruction)) for name, instruction in header["prompts"]),
        seeds=tuple(tuple(map(int, own)) for own in header["seeds"]),
        clips=tuple(arrays[f"clip{number}"] for number in range(clips)),
        segments=tuple(_segment(entry) for entry in header["segments"]),
        seconds=tuple(arrays["seconds"].tolist()),
        context=arrays["context"],
        known=arrays["known"],
        actions=arrays["actions"],
        given=int(header["given"]),
        own_actions=bool(header["own_actions"]),
        begin_seconds=float(header["begin_seconds"]),
    )
    frame, groups = (card.views, card.height, card.width, 3), len(state.seeds)
    shapes = [(state.context, (groups,)), (state.known, (groups, state.known.shape[1]))]
    shapes += [(clip, (state.rows, card.clip_frames)) for clip in state.clips]
    for values, lead in shapes:
        if values.dtype != np.uint8 or values.shape != (*lead, *frame):
            raise ValueError(f"frames are {values.dtype} {values.shape}, not uint8 {(*lead, *frame)}")
    total = state.origin + card.clip_frames * clips
    if state.actions.dtype != np.float32 or state.actions.shape != (state.rows, total - 1, card.action_dims):
        raise ValueError(f"actions are {state.actions.dtype} {state.actions.shape} for {total} frames")
    _check_places(state, total)
    return state


def _check_places(state: DiffusionState, total: int) -> None:
    generated = total - state.given
    if not 1 <= state.given <= state.origin or len(state.seconds) != generated:
        raise ValueError(f"{state.given} given frames of {total}, times of {len(state.seconds)}")
    if len(state.prompts) != len(state.seeds) or len({len(own) for own in state.seeds}) != 1:
        raise ValueError("prompts and seeds do not match")
    firsts = [segment.first for segment in state.segments]
    if (
        bool(generated) != bool(firsts)
        or firsts != sorted(set(firsts))
        or firsts[:1] not in ([], [state.given])
    ):
        raise ValueError(f"segments begin at {firsts}")
    for segment in state.segments:
        places = [segment.oldest, *([] if segment.reference is None else [segment.reference])]
        if segment.first >= total or not all(0 <= place < segment.first for place in places):
            raise ValueError(f"{segment} in a rollout of {total} frames")


def _segment(entry: Mapping[str, Any]) -> SegmentStart:
    numbers = {name: int(entry[name]) for name in ("first", "oldest", "version")}
    reference = entry["reference"]
    return SegmentStart(**numbers, reference=None if reference is None else int(reference))
