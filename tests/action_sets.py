"""Small data sets whose actions are given: the same episode in every format that is read, and its motion by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from episode_files import (
    CAMERA,
    HEIGHT,
    WIDTH,
    clip,
    example_bytes,
    frame_record,
    lerobot_info,
    lerobot_rows,
    png,
    write_lerobot_v3,
    write_mp4,
)


def write_lerobot(
    root: Path,
    version: str,
    actions: np.ndarray,
    names: Any,
    state: np.ndarray | None = None,
    **state_names: Any,
) -> None:
    """One episode of LeRobot v2.1 or v3.0 with these actions [T, A]; `names` as info.json is to hold them."""
    length = len(actions)
    lerobot_info(root, version, 1)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"] = {"dtype": "float32", "shape": [actions.shape[1]], "names": names}
    info["features"].pop("observation.state")
    rows: dict[str, list] = {**lerobot_rows(0, length), "action": np.float32(actions).tolist()}
    rows.pop("observation.state")
    if state is not None:
        info["features"]["observation.state"] = {
            "dtype": "float32",
            "shape": [state.shape[1]],
            "names": state_names.get("state_names"),
        }
        rows["observation.state"] = np.float32(state).tolist()
    (root / "meta/info.json").write_text(json.dumps(info))
    if version.startswith("v3"):
        write_lerobot_v3(root, [clip(length)], [rows])
        return
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(rows), root / "data/chunk-000/episode_000000.parquet")
    write_mp4(root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", clip(length), 10)
    line = {"episode_index": 0, "tasks": ["do"], "length": length}
    (root / "meta/episodes.jsonl").write_text(json.dumps(line) + "\n")


def write_rlds_action(
    root: Path, leaves: dict[str, np.ndarray], name: str = "my_own", state: np.ndarray | None = None
) -> None:
    """One RLDS episode. `leaves` maps the action's leaves to [T] or [T, n], of type bool, int or float; the one leaf
    named "" is an action without a dictionary."""

    def tensor(values: np.ndarray) -> dict:
        kind = {"b": "bool", "i": "int32", "f": "float32"}[values.dtype.kind]
        sizes = [str(size) for size in values.shape[1:]]
        return {"tensor": {"shape": {"dimensions": sizes}, "dtype": kind, "encoding": "none"}}

    def plain(values: np.ndarray) -> list:
        return np.ravel(values).astype(float if values.dtype.kind == "f" else int).tolist()

    def group(features: dict) -> dict:
        return {"featuresDict": {"features": features}}

    length = len(next(iter(leaves.values())))
    picture = {"image": {"shape": {"dimensions": [str(HEIGHT), str(WIDTH), "3"]}, "dtype": "uint8"}}
    observation = {"image": picture, **({} if state is None else {"state": tensor(state)})}
    action = (
        tensor(leaves[""]) if "" in leaves else group({key: tensor(value) for key, value in leaves.items()})
    )
    steps = group({"action": action, "observation": group(observation)})
    root.mkdir(parents=True, exist_ok=True)
    (root / "features.json").write_text(json.dumps(group({"steps": {"sequence": {"feature": steps}}})))
    example = {f"steps/action/{key}".rstrip("/"): plain(value) for key, value in leaves.items()}
    example["steps/observation/image"] = [png(frame) for frame in clip(length)]
    if state is not None:
        example["steps/observation/state"] = plain(state)
    (root / f"{name}-train.tfrecord-00000-of-00001").write_bytes(frame_record(example_bytes(example)))


def by_hand(column: np.ndarray, kind: str, stride: int) -> list[float]:
    """What a dimension must hold after every `stride`-th frame, one loop per frame."""
    out = []
    for start in range(0, len(column), stride):
        total, last, event = 0.0, 0.0, 0.0
        count = 0
        for value in column[start : start + stride].tolist():
            total, last, count = total + value, value, count + 1
            event = value if value else event
        out.append({"velocity": total / count, "delta": total, "delta_angle": total}.get(kind, last))
        if kind in ("toggle", "event"):
            out[-1] = event
    return out
