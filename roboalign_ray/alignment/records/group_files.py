"""Writes and reads scored groups, so that a checkpoint holds groups that are finished and not yet trained on.

One NumPy archive per group: its arrays, and one JSON text with everything else. No pickles: reading runs no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.foundation.failures import Failed, UserError, first_line
from roboalign_ray.foundation.storage.readers import parse_json, read_arrays
from roboalign_ray.rewards.protocol import Score, Scored
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.registry import payload_type

_OWN = "seconds_per_frame"  # names of the payload's arrays have the prefix `_PART`
_PART = "payload_"


def save_group(path: Path, group: ScoredGroup) -> None:
    """Write one group."""
    rollout = group.rollout
    payload, parts = rollout.payload.to_arrays()
    arrays = {_OWN: np.asarray(rollout.cost.seconds_per_frame)}
    arrays |= {_PART + name: values for name, values in parts.items()}
    for number, score in enumerate(group.scores):
        if isinstance(score, Scored) and score.per_frame is not None:
            arrays[f"score{number}_per_frame"] = score.per_frame
    header = {
        "prompt_id": rollout.prompt_id,
        "instruction": rollout.instruction,
        "seeds": list(rollout.seeds),
        "start": rollout.start,
        "peak_sequence": int(rollout.cost.peak_sequence),
        "cache_bytes": int(rollout.cost.cache_bytes),
        "kind": rollout.payload.kind,
        "payload": payload,
        "scores": [_score_header(score) for score in group.scores],
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, header=text, **arrays)  # type: ignore[arg-type]


def load_group(path: Path) -> ScoredGroup:
    """Read what `save_group` wrote, equal bit for bit.

    Raises:
        UserError: the file is missing or invalid.
    """
    arrays = read_arrays(path, "scored group")
    try:
        header = parse_json(arrays["header"].tobytes(), where=str(path), what="scored group")
        parts = {name.removeprefix(_PART): arrays[name] for name in arrays if name.startswith(_PART)}
        rollout = Rollout(
            prompt_id=header["prompt_id"],
            instruction=header["instruction"],
            seeds=tuple(header["seeds"]),
            payload=payload_type(str(header["kind"])).from_arrays(header["payload"], parts),
            cost=RolloutCost(arrays[_OWN], header["peak_sequence"], header["cache_bytes"]),
            start=header["start"],
        )
        scores = tuple(_score(entry, number, arrays) for number, entry in enumerate(header["scores"]))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"is not a scored group ({first_line(error)})", where=str(path)) from error
    return ScoredGroup(rollout, scores)


def _score_header(score: Score) -> dict[str, Any]:
    if isinstance(score, Failed):
        return {"failed": score.reason, "kind": score.kind}
    components = {name: float(value) for name, value in score.components.items()}
    return {"total": float(score.total), "components": components, "version": score.version}


def _score(entry: dict[str, Any], number: int, arrays: dict[str, np.ndarray]) -> Score:
    if "failed" in entry:
        return Failed(entry["failed"], entry["kind"])
    per_frame = arrays.get(f"score{number}_per_frame")
    return Scored(entry["total"], entry["components"], entry["version"], per_frame)
