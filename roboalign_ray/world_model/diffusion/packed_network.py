"""A denoiser for inference on a CPU: its convolutions' weights lie in memory as oneDNN's kernels read them.

PyTorch packs a convolution's weights anew at every call. At the few pictures of a pass that takes longer than the
convolution. Packed once, a pass of one row is as fast per row as one of sixteen.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from roboalign_ray.world_model.diffusion.network import Denoiser, Entrance


def packed(network: Denoiser, rows: int) -> Denoiser:
    """A copy that only predicts, in float32 on a CPU; any other network is copied as it is.

    Args:
        rows: of a pass; other numbers work, with kernels chosen for this one.
    """
    copy = deepcopy(network).eval().requires_grad_(False)
    weights = list(copy.parameters())
    plain = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    if not plain or not torch.backends.mkldnn.is_available():
        return copy
    sizes = _sizes(copy, rows)
    for name, module in list(copy.named_modules()):
        parent = copy.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Entrance):
            setattr(parent, name.rpartition(".")[2], _PackedEntrance(module, sizes[name]))
        elif isinstance(module, nn.Conv2d):
            setattr(parent, name.rpartition(".")[2], _PackedConv(module, sizes[name]))
    return copy


def _sizes(network: Denoiser, rows: int) -> dict[str, tuple[int, ...]]:
    """Size of every convolution's input in a pass of so many rows."""
    sizes: dict[str, tuple[int, ...]] = {}
    config, hooks = network.config, []
    for name, module in network.named_modules():
        if isinstance(module, Entrance):
            side = config.height // config.patch, config.width // config.patch
            sizes[name] = (rows * config.views, module.in_channels, *side)
        elif isinstance(module, nn.Conv2d):

            def remember(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                sizes[name] = tuple(given[0].shape)

            hooks.append(module.register_forward_pre_hook(remember))
    picture = (3, config.height, config.width)
    with torch.inference_mode():
        network(
            torch.zeros(rows, config.views, config.clip_frames, *picture),
            torch.ones(rows),
            torch.zeros(rows, config.views, len(config.history), *picture),
            torch.zeros(rows, config.views, *picture),
            torch.zeros(rows, config.past_actions + config.clip_frames, config.action_dims),
            torch.zeros(rows),
        )
    for hook in hooks:
        hook.remove()
    return sizes


class _PackedConv(nn.Module):
    """A convolution with packed weights.

    Args:
        conv: the same convolution.
        size: of its input.
    """

    def __init__(self, conv: nn.Conv2d, size: tuple[int, ...]) -> None:
        super().__init__()
        self._how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        assert isinstance(conv.padding, tuple)
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), *self._how, list(size)
        )
        self._bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(x, self._weight, self._bias, *self._how)


class _PackedEntrance(nn.Module):
    """`Entrance` with packed weights."""

    def __init__(self, entrance: Entrance, size: tuple[int, ...]) -> None:
        super().__init__()
        parts = entrance.weight[:, : entrance.clip], entrance.weight[:, entrance.clip :]
        convs = []
        for weight, bias in zip(parts, (entrance.bias, None), strict=True):
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=bias is not None)
            conv.weight = nn.Parameter(weight.detach().contiguous())
            conv.bias = bias
            convs.append(_PackedConv(conv, (size[0], weight.shape[1], *size[2:])))
        self._state, self._known = convs

    def state(self, pixels: Tensor) -> Tensor:
        return self._state(pixels)

    def known(self, pixels: Tensor) -> Tensor:
        return self._known(pixels)
