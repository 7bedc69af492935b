"""The inverse dynamics network: a_t = f(I_{t-k}, …, I_{t+k}), with an uncertainty per dimension.

    frames of a view ─► middle frame, differences from it ─► convolutions ─► spatial softmax ─┐
    frames of a view ─► …                                                    and values there ├─► MLP ─► mean and
                                                                                              ┘          log scale

The form (convolutional backbone, spatial softmax, MLP) is that of EVA (arXiv 2603.17808). Sizes, the uncertainty, the
differences and the values at the positions are ours: neither sizes nor k are published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from roboalign_ray.config.inverse_dynamics import InverseNetworkConfig

_LOG_SCALE = (-7.0, 3.0)  # limits of the predicted log scale
_GROUPS = 8
_READ = 3  # numbers of a keypoint: its position and the value there


class InverseDynamics(nn.Module):
    """Reads the action in the middle of short clips.

    Args:
        config: sizes.
        views: number of camera views V.
        action_dims: numbers of an action A.
    """

    def __init__(self, config: InverseNetworkConfig, views: int, action_dims: int) -> None:
        super().__init__()
        self.config, self.views, self.action_dims = config, views, action_dims
        self.backbones = nn.ModuleList(_Backbone(config) for _ in range(views))
        layers: list[nn.Module] = []
        width = views * _READ * config.keypoints
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden), nn.SiLU()]
            width = config.hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, 2 * action_dims))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of actions, in the model's units.

        Args:
            frames: float [B, 2k + 1, V, 3, H, W], scale [-1, 1].

        Returns:
            mean float [B, A]; log scale float [B, A] of a Laplace distribution.
        """
        middle = frames[:, self.config.reach]
        others = [n for n in range(self.config.frames) if n != self.config.reach]
        changes = frames[:, others] - middle[:, None]
        seen = torch.cat([middle[:, None], changes], dim=1)  # [B, 2k + 1, V, 3, H, W]
        read = [backbone(seen[:, :, view].flatten(1, 2)) for view, backbone in enumerate(self.backbones)]
        mean, log_scale = self.head(torch.cat(read, dim=-1)).chunk(2, dim=-1)
        return mean, log_scale.clamp(*_LOG_SCALE)


class _Backbone(nn.Module):
    """Convolutions of one view and its spatial softmax."""

    def __init__(self, config: InverseNetworkConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3 * config.frames
        for number, channels in enumerate(config.channels):
            last = number + 1 == len(config.channels) and number > 0
            groups = _GROUPS if channels % _GROUPS == 0 else 1
            layers += [
                nn.Conv2d(before, channels, 3, stride=1 if last else 2, padding=1),
                nn.GroupNorm(groups, channels),
                nn.SiLU(),
            ]
            before = channels
        self.convolutions = nn.Sequential(*layers)
        self.attention = nn.Conv2d(before, config.keypoints, 1)
        self.values = nn.Conv2d(before, config.keypoints, 1)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, frames: Tensor) -> Tensor:
        """Float [B, 3 (2k + 1), H, W] to positions and values [B, 3 keypoints]."""
        found = self.convolutions(frames)
        weights = self.attention(found).flatten(2) * self.log_temperature.exp()
        return torch.cat(
            [spatial_softmax(weights, found.shape[-2:]), _at(weights, self.values(found).flatten(2))], dim=-1
        )


def spatial_softmax(weights: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Expected positions under a softmax over the picture.

    Args:
        weights: logits [B, K, height * width].
        size: (height, width).

    Returns:
        float [B, 2 K]: K times y, then K times x, each from -1 to 1.
    """
    share = weights.softmax(dim=-1).unflatten(-1, tuple(size))
    y, x = (torch.linspace(-1, 1, n, device=weights.device, dtype=weights.dtype) for n in size)
    return torch.cat([share.sum(3) @ y, share.sum(2) @ x], dim=-1)


def _at(weights: Tensor, values: Tensor) -> Tensor:
    """Expected values [B, K] under the same softmax."""
    return (weights.softmax(dim=-1) * values).sum(-1)
