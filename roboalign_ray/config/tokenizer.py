"""The dual-branch FSQ video tokenizer and its training."""

from __future__ import annotations

from math import prod
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, Depth, FrozenConfig, check_warm_up


class TokenizerConfig(FrozenConfig):
    """Shape of the tokenizer. `downsample * dynamics_patch` must divide height and width.

    Attributes:
        height, width: frame size, pixels.
        downsample: pixels per context-grid cell; a power of two, at least `stem`.
        stem: patch size of the first convolution (1 keeps full resolution; 4 is cheap on a CPU).
        dynamics_patch: context-grid cells per side of one dynamics token.
        channels: width at each scale from the stem's to the coarsest; one entry per halving, plus one.
        blocks: residual blocks per scale.
        latent: channels of the continuous latent before quantisation.
        levels: FSQ levels per dimension.
        attention_max_size: cross-attention to context features at scales whose longer side is at most this.
        normalise_before_quantiser: batch normalisation without affine before FSQ; keeps tanh from saturating.
    """

    height: PositiveInt = 64
    width: PositiveInt = 64
    downsample: PositiveInt = 8
    stem: PositiveInt = 4
    dynamics_patch: PositiveInt = 2
    channels: tuple[PositiveInt, ...] = (96, 160)
    blocks: Depth = 2
    latent: PositiveInt = 64
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    attention_max_size: int = Field(16, ge=0)
    normalise_before_quantiser: bool = True

    @model_validator(mode="after")
    def _check_grid(self) -> TokenizerConfig:
        cell = self.downsample * self.dynamics_patch
        if self.height % cell or self.width % cell:
            raise ConfigError(
                f"frame size {self.height}x{self.width} is not divisible by downsample*dynamics_patch = {cell}",
                where="tokenizer",
                remedy="change height and width, downsample or dynamics_patch",
            )
        ratio = self.downsample / self.stem
        halvings = int(ratio).bit_length() - 1
        if ratio != 2**halvings or len(self.channels) != halvings + 1:
            raise ConfigError(
                f"channels has {len(self.channels)} entries and downsample/stem is {ratio:g}",
                where="tokenizer",
                remedy="downsample/stem must be a power of two, with one channel count per scale (halvings + 1)",
            )
        if any(level < 2 for level in self.levels):
            raise ConfigError(f"FSQ levels {self.levels} hold a level below 2", where="tokenizer.levels")
        return self

    @property
    def codes(self) -> int:
        """Codebook size, the product of the levels (4,375 for the paper's)."""
        return prod(self.levels)

    @property
    def context_grid(self) -> tuple[int, int]:
        """Rows and columns of context tokens."""
        return self.height // self.downsample, self.width // self.downsample

    @property
    def dynamics_grid(self) -> tuple[int, int]:
        """Rows and columns of dynamics tokens."""
        rows, columns = self.context_grid
        return rows // self.dynamics_patch, columns // self.dynamics_patch

    @property
    def context_tokens(self) -> int:
        """Tokens of the context frame."""
        return prod(self.context_grid)

    @property
    def dynamics_tokens(self) -> int:
        """Tokens of every following frame."""
        return prod(self.dynamics_grid)


class TokenizerTrainingConfig(FrozenConfig):
    """Training the tokenizer.

    Attributes:
        steps: number of optimizer steps.
        windows_per_step: number of windows over all workers; each gives one context and `frames_per_window` dynamics
            frames.
        frames_per_window: number of dynamics frames drawn from each window.
        context_range: the context frame is drawn from this many frames before the window's start.
        context_share: share of the context frames in the L1 term, independent of their number.
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with linear warm-up, then cosine to 5 %.
            Without warmup_steps, the warm-up is a tenth of the steps, at most 200.
        perceptual_weight: weight of LPIPS; 0 disables it.
        perceptual_network: LPIPS backbone.
        perceptual_images: number of images per step for LPIPS (it costs more than the tokenizer itself on a CPU).
        gan_weight, gan_start: weight of the adversarial term, and the step at which it starts; weight 0 disables it.
        precision: autocast type.
        ema_decay: decay of the average of the weights, which is the result; 0 takes the last weights.
        log_every, checkpoint_every: steps between rows of the metrics, and between checkpoints.
    """

    steps: PositiveInt = 2000
    windows_per_step: PositiveInt = 8
    frames_per_window: PositiveInt = 5
    context_range: PositiveInt = 15
    context_share: float = Field(0.3, ge=0, le=1)
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: NonNegativeInt | None = None
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    perceptual_weight: float = Field(0.1, ge=0)
    perceptual_network: Literal["alex", "vgg"] = "alex"
    perceptual_images: PositiveInt = 8
    gan_weight: float = Field(0.0, ge=0)
    gan_start: int = Field(10_000, ge=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    ema_decay: float = Field(0.995, ge=0, lt=1)
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 500

    @property
    def warmup(self) -> int:
        """Number of steps of linear warm-up."""
        return min(200, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _check_warm_up(self) -> TokenizerTrainingConfig:
        check_warm_up(self.warmup_steps, self.steps, "tokenizer_training.warmup_steps")
        if self.gan_weight and self.gan_start >= self.steps:
            raise ConfigError(
                f"the adversarial term starts at step {self.gan_start} of {self.steps}",
                where="tokenizer_training.gan_start",
                remedy="start it earlier, or set gan_weight to 0",
            )
        return self
