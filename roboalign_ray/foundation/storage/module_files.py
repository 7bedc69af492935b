"""Loads a module's weights from a safetensors file; memory is allocated only after the file's tensors were checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from roboalign_ray.foundation.failures import UserError

Module = TypeVar("Module", bound=nn.Module)


def load_module(build: Callable[[], Module], weights: Path) -> Module:
    """Build a module and load its weights from a file.

    A config from an untrusted source can ask for any size. So the module is first built on the "meta" device, without
    memory. It is built in memory only if its tensors have the names and shapes of the file's tensors.

    Args:
        build: builds the module; called twice.
        weights: a safetensors file with all of its tensors.

    Raises:
        UserError: the file's tensors differ from the module's, or a value is not finite.
        SafetensorError, OSError: the file cannot be read.
    """
    with safe_open(weights, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    if found != wanted:
        differing = sorted(
            name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
        )
        first = differing[0]
        raise UserError(
            f"tensor '{first}' has shape {found.get(first, 'none')}, the config says {wanted.get(first, 'none')}",
            where=str(weights),
            remedy="both files must come from the same training",
        )
    state = load_file(weights)
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"tensor '{name}' holds a number that is not finite", where=str(weights))
    module = build()
    module.load_state_dict(state)
    return module
