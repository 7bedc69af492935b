"""Low-rank adapters (LoRA, arXiv 2106.09685) of any network, as plain tensors beside its weights.

    W = W_base + (alpha / rank) up @ down        down [rank, inputs * kernel], up [outputs, rank]

A convolution's weight [outputs, inputs, k, k] is taken as a matrix [outputs, inputs * k * k]; its adapter is then a
convolution to `rank` channels followed by one of size 1. The network itself is not changed: `functional_call` runs it
with other weights, so one network serves the base, the trained policy and averages of it.

What travels to rollout workers are `Adapters.factors`: "X.down" and "X.up" of the adapted weights X, the scale in
"X.up", and whole weights by their own names. `whole_weights` makes all weights of it where they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roboalign_ray.foundation.failures import UserError

_DOWN, _UP = ".down", ".up"


class Adapters(nn.Module):
    """Adapters of a network's weights, and whole copies of some. At the beginning they change nothing.

    Args:
        network: read, not changed.
        rank, alpha: see the module's head.
        targets: parts of names; weights with at least two axes whose names hold one of them get an adapter.
        whole: parts of names; weights that hold one of them are trained as they are.

    Raises:
        UserError: a part is in no weight's name.
    """

    def __init__(
        self, network: nn.Module, *, rank: int, alpha: float, targets: Sequence[str], whole: Sequence[str]
    ) -> None:
        super().__init__()
        self.scale = alpha / rank
        # Names of parameters may hold no dot.
        self.down, self.up, self.whole = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        named = dict(network.named_parameters())
        _check_parts([name for name, value in named.items() if value.ndim > 1], targets, "targets")
        _check_parts(list(named), whole, "whole")
        for name, value in named.items():
            if any(part in name for part in whole):
                self.whole[_key(name)] = nn.Parameter(value.detach().clone())
            elif value.ndim > 1 and any(part in name for part in targets):
                down = torch.empty(rank, value[0].numel())
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as PyTorch begins a linear layer
                self.down[_key(name)] = nn.Parameter(down)
                self.up[_key(name)] = nn.Parameter(torch.zeros(len(value), rank))

    def factors(self) -> dict[str, Tensor]:
        """What changes the base's weights, by name, with gradient; see the module's head."""
        found: dict[str, Tensor] = {}
        for key, down in self.down.items():
            found[_name(key) + _DOWN] = down
            found[_name(key) + _UP] = self.scale * self.up[key]
        return found | {_name(key): value for key, value in self.whole.items()}


def whole_weights(base: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Tensor]:
    """All weights of a network: those of the base where nothing else is given.

    Args:
        base: all weights by name.
        given: `Adapters.factors`, or weights by name, all or some; tensors or arrays.

    Returns:
        Weights in the base's precision and on its device.

    Raises:
        UserError: names or shapes that do not fit the base.
    """
    weights = dict(base)
    for name, value in given.items():
        adapted = name if name in base else name.removesuffix(_DOWN).removesuffix(_UP)
        if adapted not in base or (adapted != name and not {adapted + _DOWN, adapted + _UP} <= given.keys()):
            raise UserError(f"'{name}' belongs to no weight of this model", where="weights")
        try:
            if adapted == name:
                weights[name] = _like(value, base[name])
            elif name.endswith(_DOWN):
                change = _tensor(given[adapted + _UP]) @ _tensor(value)
                weights[adapted] = base[adapted] + _like(change, base[adapted])
        except RuntimeError as error:
            raise UserError(f"'{name}' has the wrong shape for this model", where="weights") from error
    return weights


def _like(value: Any, base: Tensor) -> Tensor:
    return _tensor(value).view(base.shape).to(base)


def _tensor(value: Any) -> Tensor:
    """Arrays that travelled are read-only; nothing here writes to them, but PyTorch cannot know."""
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _check_parts(names: Sequence[str], parts: Sequence[str], setting: str) -> None:
    for part in parts:
        if not any(part in name for name in names):
            raise UserError(
                f"no weight of this model has '{part}' in its name",
                where=f"alignment.diffusion.lora.{setting}",
                remedy=f"its weights are {', '.join(sorted({name.split('.')[0] for name in names}))} …",
            )


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
