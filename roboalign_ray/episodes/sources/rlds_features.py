"""features.json of an RLDS dataset: types and shapes of flattened features."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roboalign_ray.episodes.sources.base import opened
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.foundation.failures import UserError, printable

_MOST_LEAVES = 10_000


@dataclass(frozen=True)
class Feature:
    """One leaf of features.json.

    Attributes:
        kind: "image", "text", "tensor", "label" (a number of a name), or "other", which is not read.
        shape: shape of one step; a variable size is -1.
        dtype, encoding: TensorFlow Datasets' names.
        ragged: whether it is a sequence inside the steps: steps may hold different numbers of items.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    encoding: str = "none"
    ragged: bool = False

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers or booleans (0 and 1), for an action or state vector."""
        return self.kind in ("tensor", "label")

    @property
    def is_camera(self) -> bool:
        """Whether it is a colour picture of 8 bits, and not a depth map or a mask (one channel, or other numbers)."""
        return (
            self.kind == "image"
            and not self.ragged
            and self.dtype == "uint8"
            and self.shape[-1:] in ((3,), (4,), ())
        )


def read_features(path: Path) -> dict[str, Feature]:
    """Leaves of a features.json by their flattened name ("steps/observation/state").

    Raises:
        UserError: unreadable, or not of that layout.
    """
    try:
        leaves: dict[str, Feature] = {}
        for name, leaf in _leaves(json.loads(read_small(path)), "", depth=0):
            leaves[name] = leaf
            if len(leaves) > _MOST_LEAVES:
                raise ValueError(f"more than {_MOST_LEAVES} features")
    except Exception as error:  # a damaged tree may raise anything
        raise opened("RLDS features", path, error) from error
    if not any(name.startswith("steps/") for name in leaves):
        raise UserError("describes no 'steps': not an RLDS dataset", where=str(path))
    return leaves


def view_keys(features: Mapping[str, Feature]) -> dict[str, str]:
    """View name -> feature, of every camera picture of the steps.

    A view is named by the last part of its key; pictures that would share a name use as many parts as needed.
    """
    keys = sorted(key for key, feature in features.items() if feature.is_camera and key.startswith("steps/"))
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split("/")
        for used in range(1, len(parts) + 1):
            name = ".".join(parts[-used:])
            if sum(("." + other.replace("/", ".")).endswith(f".{name}") for other in keys) == 1:
                break
        else:
            name = key  # "left/rgb" beside "left.rgb"
        names[printable(name)] = key
    return names


def _leaves(node: Mapping[str, Any], name: str, *, depth: int) -> Iterator[tuple[str, Feature]]:
    """Leaves below a node; `depth` is the number of sequences around it, of which the steps are the first."""
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{name}/{key}" if name else key, depth=depth)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], name, depth=depth + 1)
    else:
        yield name, replace(_leaf(node), ragged=depth > 1)


def _leaf(node: Mapping[str, Any]) -> Feature:
    if "image" in node:
        return Feature("image", _shape(node["image"]), _text(node["image"], "dtype", "uint8"))
    if "text" in node:
        return Feature("text", dtype="string")
    if "classLabel" in node:
        return Feature("label", dtype="int64")
    if "tensor" not in node:
        return Feature("other")
    tensor = node["tensor"]
    dtype = _text(tensor, "dtype", "float32")
    kind = "text" if dtype in ("string", "object") else "tensor"
    return Feature(kind, _shape(tensor), dtype, _text(tensor, "encoding", "none").lower())


def _text(node: Mapping[str, Any], key: str, default: str) -> str:
    value = node.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"'{key}' is no text")
    return value or default


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    sizes = node.get("shape", {}).get("dimensions", [])
    if not isinstance(sizes, list):
        raise ValueError("'dimensions' is no list")
    return tuple(-1 if size is None else int(size) for size in sizes)
