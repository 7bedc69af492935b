"""The policy of a diffusion world model: its denoiser, trained whole or through low-rank adapters.

One network serves three policies. The trained one holds the weights that the optimizer moves; the old one and the
frozen base are the same network with other weights (`torch.func.functional_call`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from roboalign_ray.alignment.objectives.diffusion_batch import ClipBatch
from roboalign_ray.alignment.objectives.protocol import PolicyModel
from roboalign_ray.config.alignment_diffusion import LoraConfig
from roboalign_ray.world_model.diffusion.adapters import Adapters, whole_weights
from roboalign_ray.world_model.diffusion.conditioning import Inputs
from roboalign_ray.world_model.diffusion.denoising import residual_of
from roboalign_ray.world_model.diffusion.files import DenoiserFolder, load_denoiser, save_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser


class DiffusionPolicy(PolicyModel):
    """A denoiser whose forward pass gives clean states.

    Args:
        network: float32; frozen where there are adapters.
        folder: what it was opened from, for the folder that `save` writes and for its scales.
        lora: adapters; of rank 0, the network's own weights are trained.
    """

    def __init__(self, network: Denoiser, folder: DenoiserFolder, lora: LoraConfig) -> None:
        super().__init__()
        self.network, self.folder = network, folder
        self.adapters = None
        if lora.rank:
            self.adapters = Adapters(
                network, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, whole=lora.whole
            )
        network.requires_grad_(not lora.rank)

    def forward(
        self, state: Tensor, time: Tensor, history: Tensor, reference: Tensor, actions: Tensor, level: Tensor
    ) -> Tensor:
        """The trained policy's clean states float32 [B, V, n, 3, H, W]; arguments as `Denoiser.forward`."""
        weights = None if self.adapters is None else self.whole(self.adapters.factors())
        return self._clean(weights, (state, time, history, reference, actions, level))

    @torch.no_grad()
    def clean_with(
        self, weights: Mapping[str, Tensor], item: ClipBatch, device: torch.device | str
    ) -> Tensor:
        """The clean states of a policy with other weights, without gradient.

        Args:
            weights: as `weights` gives them; what is not in it is the network's own.
        """
        return self._clean(self.whole(weights), self.inputs(item, device))

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights of the network with some, or adapters, given."""
        return whole_weights(dict(self.network.named_parameters()), weights)

    def _clean(self, weights: Mapping[str, Tensor] | None, arguments: tuple[Tensor, ...]) -> Tensor:
        clip = (
            functional_call(self.network, dict(weights), arguments) if weights else self.network(*arguments)
        )
        _, _, history, reference, actions, level = arguments
        seen = Inputs(history.float(), reference, actions, level)
        return residual_of(clip.float(), seen, self.folder.noise.residual_scale)

    def inputs(self, item: ClipBatch, device: torch.device | str) -> tuple[Tensor, ...]:
        """Arguments of `forward` for a micro-batch."""
        dtype, seen = self.network.head.weight.dtype, item.inputs
        arguments = (item.state, item.time, seen.history, seen.reference, seen.actions, seen.level)
        return tuple(value.to(device, dtype) for value in arguments)

    def weights(self) -> Mapping[str, Tensor]:
        """What is trained: adapters and whole weights by the names that `whole_weights` takes, or all weights."""
        if self.adapters is not None:
            return self.adapters.factors()
        return dict(self.network.named_parameters())

    def save(self, folder: Path) -> None:
        """Write the folder of a diffusion world model, adapters merged."""
        self.save_with(self.weights(), folder)

    @torch.no_grad()
    def save_with(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """The same with other weights, as `weights` gives them."""
        merged = copy.deepcopy(self.network).float()
        merged.load_state_dict(whole_weights(dict(merged.named_parameters()), weights))
        save_denoiser(folder, merged, self.folder.noise, self.folder.card)


def open_diffusion_policy(folder: Path, lora: LoraConfig) -> DiffusionPolicy:
    """A diffusion world model as a policy, float32 on the CPU. New adapters are the same ones in every process.

    Raises:
        UserError: the folder holds no diffusion world model, or adapters fit none of its weights.
    """
    network, described = load_denoiser(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusionPolicy(network, described, lora)
