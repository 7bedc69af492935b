"""Training state in files that hold only data: a tree of tensors and plain values as one safetensors file.

    {"optimizer": {"state": {0: {"exp_avg": tensor, "step": tensor}}}, "betas": (0.9, 0.98), "generator": None}
        ──write_state──►  one safetensors file: tensors by number, and the tree as JSON in its header

`torch.save` writes a pickle, and opening a pickle from an untrusted source can run any code. Here only tensors and
JSON are read, so a file from an untrusted source can be wrong but cannot run code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host

_TREE, _FORMAT = "roboalign_ray.state", "1"
_REMEDY = "use an earlier checkpoint, or start again in another folder"
_MAX_DEPTH = 64  # no state is nested deeper; a deeper file was not written by this program


class StateError(UserError):
    """A file of training state is missing, damaged, or has another format; `where` names it."""


def write_state(path: str | Path, tree: Any) -> None:
    """Write a tree of tensors and plain values.

    Args:
        path: path of the file.
        tree: mappings (keys are strings or integers), lists, tuples, tensors on any device, NumPy arrays and numbers,
            and JSON's plain values, including floats that are not finite. Reading it returns the same values, tensor
            types and kinds of containers; every mapping is returned as a dict, every tensor on the CPU.

    Raises:
        TypeError: the tree holds any other type.
        HostError: the disk is full, or the file cannot be written.
    """
    writer = _Writer()
    text = json.dumps(writer.encoded(tree, "state"))
    try:
        save_file(writer.tensors, path, metadata={_TREE: _FORMAT, "tree": text})
    except (SafetensorError, OSError) as error:
        raise_if_host(error, where=str(path))
        raise


def read_state(path: str | Path) -> Any:
    """Read the tree that `write_state` wrote, with its tensors on the CPU. No code from the file is run.

    Raises:
        StateError: the file is missing, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise StateError("is missing from the checkpoint", where=str(path), remedy=_REMEDY)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            if about.get(_TREE) != _FORMAT:
                raise ValueError("it has no tree of this format")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return _decoded(json.loads(about["tree"]), tensors, 0)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise StateError(
            f"is not training state of this program ({first_line(error)})", where=str(path), remedy=_REMEDY
        ) from error


class _Writer:
    """Collects the tensors while a tree is converted to JSON."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._places: set[int] = set()

    def encoded(self, value: Any, where: str) -> Any:
        """JSON for a value; `where` names it in errors."""
        if value is None or isinstance(value, bool | str) or type(value) in (int, float):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._kept(value)}
        if isinstance(value, np.ndarray):
            return {"array": self._kept(torch.from_numpy(np.array(value, order="C")))}
        if isinstance(value, np.generic):
            return self.encoded(value.item(), where)
        if isinstance(value, Mapping):
            return {"dict": [self._entry(key, item, where) for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.encoded(item, f"{where}[{n}]") for n, item in enumerate(value)]}
        raise TypeError(f"{where}: a {type(value).__name__} cannot be stored as data")

    def _entry(self, key: Any, item: Any, where: str) -> list[Any]:
        if type(key) not in (str, int):
            raise TypeError(f"{where}: the key {key!r} is neither a string nor an integer")
        return [key, self.encoded(item, f"{where}.{key}")]

    def _kept(self, tensor: Tensor) -> str:
        name = f"{len(self.tensors):06d}"
        kept = tensor.detach().contiguous()
        # safetensors refuses views into one buffer, which optimizers use, as shared memory.
        whole = kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
        if kept.numel() and (not whole or kept.data_ptr() in self._places):
            kept = kept.clone()
        self._places.add(kept.data_ptr())
        self.tensors[name] = kept
        return name


def _decoded(node: Any, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ValueError("a list is where a value should be")
        return node
    [(kind, held)] = node.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "array":
        return tensors[held].numpy()
    if kind == "dict":
        return {_key(key): _decoded(item, tensors, depth + 1) for key, item in held}
    if kind in ("list", "tuple"):
        items = [_decoded(item, tensors, depth + 1) for item in held]
        return items if kind == "list" else tuple(items)
    raise ValueError(f"it holds an unknown kind '{kind}'")


def _key(key: Any) -> str | int:
    if type(key) not in (str, int):
        raise ValueError(f"{key!r} is not a key")
    return key
