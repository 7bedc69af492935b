"""LPIPS, the learned perceptual distance (Zhang et al., arXiv 1801.03924, v0.1), labelled with the weights it uses.

Distance = sum over five layers of the head-weighted squared difference of unit-normalised features, averaged
over the image. The heads are those of the `lpips` package; the backbone is read from this machine (see
`lpips_backbone`). If it is missing, evaluation computes the distance with a random network of a fixed seed, and the
label states this: such numbers rank images roughly and cannot be compared with published ones. Training uses a random
network only if the configured name is "random-alex" or "random-vgg".
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics.lpips_backbone import CHANNELS, Backbone, Network, load_backbone

SMALLEST_SIDE = 32  # below it AlexNet's last maps are empty
RANDOM = "random-"  # prefix of a network's name: use a random backbone
_RANDOM_SEED = 0


class PerceptualDistance(nn.Module):
    """LPIPS between images in [0, 1]. All weights are frozen; gradients flow to the images.

    Attributes:
        network: "alex" or "vgg".
        real: whether the backbone is the pre-trained one.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network, backbone: Backbone, heads: list[Tensor], real: bool) -> None:
        super().__init__()
        self.network, self.real = network, real
        self.backbone = backbone
        self.heads = nn.ParameterList([nn.Parameter(head, requires_grad=False) for head in heads])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval()

    @property
    def label(self) -> str:
        """The name of the metric in tables; it states a random backbone."""
        name = f"LPIPS-{self.network}"
        return name if self.real else f"{RANDOM}{name} (backbone not available)"

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Distances [B] of float images [B, 3, H, W] in [0, 1].

        Raises:
            UserError: the images have another shape or type, or a side is below 32 pixels.
        """
        return _average(self._layers(a_BCHW, b_BCHW))

    def spatial(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Distance maps [B, H, W]: the layers' maps, resized bilinearly to the image's size and summed."""
        return _upsample(self._layers(a_BCHW, b_BCHW), a_BCHW.shape[2:])

    def both(self, a_BCHW: Tensor, b_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [B] and maps [B, H, W] from one pass through the backbone."""
        layers = self._layers(a_BCHW, b_BCHW)
        return _average(layers), _upsample(layers, a_BCHW.shape[2:])

    def _layers(self, a_BCHW: Tensor, b_BCHW: Tensor) -> list[Tensor]:
        """Head-weighted squared differences [B, H_k, W_k], in float32 for any type of the backbone."""
        _check_images(a_BCHW, b_BCHW)
        maps_a, maps_b = self.backbone(self._normalise(a_BCHW)), self.backbone(self._normalise(b_BCHW))
        return [
            ((_unit(a) - _unit(b)).square() * head.view(1, -1, 1, 1)).sum(dim=1)
            for a, b, head in zip(maps_a, maps_b, self.heads, strict=True)
        ]

    def _normalise(self, images_BCHW: Tensor) -> Tensor:
        return (2 * images_BCHW - 1 - self.shift) / self.scale


def load_lpips(
    name: str = "alex", device: torch.device | str = "cpu", *, required: bool = False
) -> PerceptualDistance:
    """LPIPS with the pre-trained backbone if this machine has it, else with a random one (see `.real`).

    It never downloads; `roboalign assets fetch` does.

    Args:
        name: "alex" or "vgg"; "random-alex" and "random-vgg" always use the random backbone.
        device: device to run on.
        required: raise an error instead of replacing a missing backbone by a random one. Training sets this.

    Raises:
        UserError: there is no such network, or its backbone is required and missing.
    """
    network: Network = "vgg" if name.endswith("vgg") else "alex"
    if name.removeprefix(RANDOM) not in CHANNELS:
        raise UserError(f"no LPIPS network '{name}'", where="lpips_network", remedy="use 'alex' or 'vgg'")
    backbone = None if name.startswith(RANDOM) else load_backbone(network)
    real = backbone is not None
    if not real and required and not name.startswith(RANDOM):
        raise UserError(
            f"the {network} backbone of LPIPS is not on this machine",
            where="LPIPS",
            remedy=f"run 'roboalign assets fetch', or ask for the network '{RANDOM}{network}' to do without it",
        )
    if backbone is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            backbone = Backbone(network)
    return PerceptualDistance(network, backbone, _load_heads(network), real).to(device)


def _load_heads(network: Network) -> list[Tensor]:
    """The five 1x1 heads [C_k]. The package is not imported, since that would import torchvision's models."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise UserError("package lpips is not installed", where="LPIPS", remedy="pip install lpips==0.1.4")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{network}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{index}.model.1.weight"].flatten() for index in range(len(CHANNELS[network]))]


def _average(layers: list[Tensor]) -> Tensor:
    return torch.stack([layer_BHW.mean(dim=(1, 2)) for layer_BHW in layers]).sum(dim=0)


def _upsample(layers: list[Tensor], size: torch.Size) -> Tensor:
    maps = [
        functional.interpolate(layer_BHW[:, None], size=size, mode="bilinear", align_corners=False)
        for layer_BHW in layers
    ]
    return torch.stack(maps).sum(dim=0).squeeze(1)


def _unit(features_BCHW: Tensor) -> Tensor:
    """Features divided by their norm over channels.

    The tiny constant inside the root keeps its gradient finite where all features are zero.
    """
    features = features_BCHW.float()
    norm = (features.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()
    return features / (norm + 1e-10)


def _check_images(a_BCHW: Tensor, b_BCHW: Tensor) -> None:
    if a_BCHW.shape != b_BCHW.shape or a_BCHW.ndim != 4 or a_BCHW.shape[1] != 3:
        raise UserError(f"images are {tuple(a_BCHW.shape)} and {tuple(b_BCHW.shape)}", where="LPIPS")
    if not (a_BCHW.is_floating_point() and b_BCHW.is_floating_point()):
        raise UserError("images are not floating point in [0, 1]", where="LPIPS")
    if min(a_BCHW.shape[2:]) < SMALLEST_SIDE:
        raise UserError(
            f"images of {a_BCHW.shape[2]}x{a_BCHW.shape[3]} are too small",
            where="LPIPS",
            remedy=f"both sides need at least {SMALLEST_SIDE} pixels",
        )
