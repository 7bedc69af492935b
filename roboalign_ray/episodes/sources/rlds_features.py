"""features.json of an RLDS dataset: which flattened feature is a picture, a text or a tensor, and of which shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError


@dataclass(frozen=True)
class Feature:
    """One leaf of features.json. `kind` is "image", "text" or "tensor"; `shape` is that of one step."""

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    encoding: str = "none"

    @property
    def is_numeric(self) -> bool:
        """A float or integer tensor, fit for an action or state vector."""
        return self.kind == "tensor" and self.dtype not in ("bool", "string")


def read_features(path: Path) -> dict[str, Feature]:
    """Leaves of a features.json by their flattened name ("steps/observation/state").

    Raises:
        UserError: unreadable, or not of that layout.
    """
    try:
        leaves = dict(_leaves(json.loads(path.read_text()), ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot be read as RLDS features ({error})", where=str(path)) from error
    if not any(name.startswith("steps/") for name in leaves):
        raise UserError("describes no 'steps': not an RLDS dataset", where=str(path))
    return leaves


def _leaves(node: Mapping[str, Any], name: str) -> Iterator[tuple[str, Feature]]:
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{name}/{key}" if name else key)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], name)
    elif "image" in node:
        yield name, Feature("image", _shape(node["image"]), node["image"].get("dtype", "uint8"))
    elif "text" in node:
        yield name, Feature("text", dtype="string")
    elif "tensor" in node:
        tensor = node["tensor"]
        kind = "text" if tensor.get("dtype") in ("string", "object") else "tensor"
        yield (
            name,
            Feature(kind, _shape(tensor), tensor.get("dtype", "float32"), tensor.get("encoding", "none")),
        )


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", []))
