"""The dual-branch video tokenizer: many tokens for one context frame, few tokens for every frame after it.

The context branch uses `context_tokens` for one frame. The dynamics branch uses `dynamics_tokens` for each following
frame and takes the rest from the context's features. These features are computed from the context *codes* alone, so
the tokens are enough to decode the frames. The two branches, FSQ and the losses follow the tokenizer of the public
RLVR-World code (arXiv 2505.13934); resolution, grid and widths are configured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from roboalign_ray.config import TokenizerConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.module_files import load_module
from roboalign_ray.foundation.storage.readers import parse_json
from roboalign_ray.tokenizer.fsq import FSQ
from roboalign_ray.tokenizer.modules import Decoder, Encoder

WEIGHTS, CONFIG = "tokenizer.safetensors", "tokenizer.json"

ContextFeatures = list[
    Tensor
]  # features of the context decoder, each [B, channels, rows, columns], finest first


@dataclass(frozen=True)
class Reconstruction:
    """The output of a training forward pass: frames in [0, 1] (not clamped) and their codes.

    Attributes:
        context: [B, 3, H, W].
        dynamics: [B, T, 3, H, W].
        context_codes: int64 [B, C].
        dynamics_codes: int64 [B, T, D].
    """

    context: Tensor
    dynamics: Tensor
    context_codes: Tensor
    dynamics_codes: Tensor


class _Quantiser(nn.Module):
    """Project to FSQ's dimensions, normalise, round, and project back. [..., latent] -> values [..., latent], codes."""

    def __init__(self, width: int, config: TokenizerConfig, fsq: FSQ) -> None:
        super().__init__()
        self.fsq = fsq
        self.project = nn.Linear(width, len(config.levels))
        # Without normalisation the values before the quantiser grow, tanh saturates and only corner codes are used.
        self.normalise = (
            nn.BatchNorm1d(len(config.levels), affine=False) if config.normalise_before_quantiser else None
        )
        self.expand = nn.Linear(len(config.levels), width)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(latent.device.type, enabled=False):
            z = self.project(latent.float())
            if self.normalise is not None:
                z = self.normalise(z.flatten(0, -2)).view_as(z)
        values, codes = self.fsq(z)
        return self.expand(values), codes

    def lookup(self, codes: Tensor) -> Tensor:
        return self.expand(self.fsq.codes_to_values(codes))


class DualBranchTokenizer(nn.Module):
    """Encodes frames to codes and decodes codes to frames. Public methods take and return frames in [0, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        patch_width = config.latent * config.dynamics_patch**2
        fsq = FSQ(config.levels)
        self.context_encoder, self.context_decoder = (
            Encoder(config, fused=False),
            Decoder(config, fused=False),
        )
        self.dynamics_encoder, self.dynamics_decoder = (
            Encoder(config, fused=True),
            Decoder(config, fused=True),
        )
        self.context_quantiser = _Quantiser(config.latent, config, fsq)
        self.dynamics_quantiser = _Quantiser(patch_width, config, fsq)
        # With channels last, convolutions take a fifth less time on both CPUs and GPUs.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame, pixels."""
        return self.config.height, self.config.width

    def forward(self, context_BCHW: Tensor, frames_BTCHW: Tensor) -> Reconstruction:
        """Encode, quantise with straight-through gradients, and decode both branches."""
        latent = rearrange(self.context_encoder(context_BCHW * 2 - 1), "b c h w -> b h w c")
        values, context_codes = self.context_quantiser(latent)
        features = self.context_decoder.trunk(rearrange(values, "b h w c -> b c h w"))
        context = self.context_decoder.render(features)

        patches = self._dynamics_patches(frames_BTCHW, features)
        values, dynamics_codes = self.dynamics_quantiser(patches)
        return Reconstruction(
            context=(context + 1) / 2,
            dynamics=self._render_dynamics(values, features),
            context_codes=context_codes.flatten(1),
            dynamics_codes=dynamics_codes.flatten(2),
        )

    @torch.no_grad()
    def encode_context(self, frames_BCHW: Tensor) -> Tensor:
        """Encode context frames float [B, 3, H, W] in [0, 1] to codes int64 [B, C].

        Raises:
            UserError: the frames do not have the tokenizer's size.
        """
        self._check_size(frames_BCHW)
        latent = rearrange(self.context_encoder(frames_BCHW * 2 - 1), "b c h w -> b h w c")
        return self.context_quantiser(latent)[1].flatten(1)

    @torch.no_grad()
    def context_features(self, codes_BC: Tensor) -> ContextFeatures:
        """The features of context codes int64 [B, C] for the dynamics branch; equal rows are computed once."""
        distinct, row = torch.unique(codes_BC, dim=0, return_inverse=True)
        features = self._features_of(distinct)
        return features if len(distinct) == 1 == len(row) else [feature[row] for feature in features]

    @torch.no_grad()
    def encode_dynamics(self, frames_BTCHW: Tensor, context: Tensor | ContextFeatures) -> Tensor:
        """Encode frames float [B, T, 3, H, W] in [0, 1], given their context, to codes int64 [B, T, D].

        Args:
            context: codes int64 [B, C], or their features from `context_features`.
        """
        self._check_size(frames_BTCHW)
        patches = self._dynamics_patches(frames_BTCHW, self._as_features(context))
        return self.dynamics_quantiser(patches)[1].flatten(2)

    @torch.no_grad()
    def decode_context(self, codes_BC: Tensor) -> Tensor:
        """Decode codes int64 [B, C] to frames [B, 3, H, W], clamped to [0, 1]."""
        frames = self.context_decoder.render(self._features_of(codes_BC))
        return ((frames + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def decode_dynamics(self, codes_BTD: Tensor, context: Tensor | ContextFeatures) -> Tensor:
        """Decode codes int64 [B, T, D], given their context, to frames [B, T, 3, H, W] clamped to [0, 1].

        Args:
            context: codes int64 [B, C], or their features from `context_features`.
        """
        rows, _ = self.config.dynamics_grid
        values = self.dynamics_quantiser.lookup(rearrange(codes_BTD, "b t (h w) -> b t h w", h=rows))
        return self._render_dynamics(values, self._as_features(context)).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and config (JSON) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(self.config.model_dump(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> DualBranchTokenizer:
        """Read the files that `save` wrote. The tokenizer is returned in evaluation mode.

        Raises:
            UserError: files are missing, unreadable, or do not belong together.
        """
        try:
            config = read_config(folder)
            tokenizer = load_module(lambda: cls(config), folder / WEIGHTS)
        except FileNotFoundError as error:
            raise UserError(
                folder_fault(folder, f"no tokenizer here: {Path(error.filename or WEIGHTS).name} is missing"),
                where=str(folder),
                remedy="give a folder written by pretraining, or 'shipped'",
            ) from error
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise UserError(
                f"tokenizer cannot be read: {first_line(error)}",
                where=str(folder),
                remedy="the files are damaged or come from two different runs; write them again",
            ) from error
        return tokenizer.eval()

    def _as_features(self, context: Tensor | ContextFeatures) -> ContextFeatures:
        return self.context_features(context) if isinstance(context, Tensor) else context

    def _features_of(self, codes_BC: Tensor) -> ContextFeatures:
        rows, _ = self.config.context_grid
        values = self.context_quantiser.lookup(rearrange(codes_BC, "b (h w) -> b h w", h=rows))
        return self.context_decoder.trunk(rearrange(values, "b h w c -> b c h w"))

    def _dynamics_patches(self, frames_BTCHW: Tensor, features: list[Tensor]) -> Tensor:
        """The encoder's latent as patches [B, T, rows, columns, latent * patch^2]."""
        batch = frames_BTCHW.shape[0]
        flat = rearrange(frames_BTCHW * 2 - 1, "b t c h w -> (b t) c h w")
        patch = self.config.dynamics_patch
        return rearrange(
            self.dynamics_encoder(flat, features),
            "(b t) c (h p) (w q) -> b t h w (c p q)",
            b=batch,
            p=patch,
            q=patch,
        )

    def _render_dynamics(self, values: Tensor, features: list[Tensor]) -> Tensor:
        """Values [B, T, rows, columns, latent * patch^2] to frames [B, T, 3, H, W] in [0, 1], not clamped."""
        batch, patch = values.shape[0], self.config.dynamics_patch
        latent = rearrange(values, "b t h w (c p q) -> (b t) c (h p) (w q)", p=patch, q=patch)
        frames = self.dynamics_decoder.render(self.dynamics_decoder.trunk(latent, features))
        return (rearrange(frames, "(b t) c h w -> b t c h w", b=batch) + 1) / 2

    def _check_size(self, frames: Tensor) -> None:
        expected = (3, self.config.height, self.config.width)
        if tuple(frames.shape[-3:]) != expected:
            raise UserError(
                f"frames are {tuple(frames.shape[-3:])}, the tokenizer takes {expected}",
                where="tokenizer",
                remedy="resize the frames or configure tokenizer.height and tokenizer.width",
            )


def read_config(folder: Path) -> TokenizerConfig:
    """The config of the tokenizer in a folder.

    Raises:
        UserError: the config file is missing, or is not a tokenizer's config.
    """
    path = folder / CONFIG
    try:
        return TokenizerConfig.model_validate(
            parse_json(path.read_bytes(), where=str(path), what="tokenizer config")
        )
    except FileNotFoundError as error:
        raise UserError(
            folder_fault(folder, f"no tokenizer here: {CONFIG} is missing"),
            where=str(folder),
            remedy="give a folder written by pretraining, or 'shipped'",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not a tokenizer's config ({first_line(error)})", where=str(path)) from error
