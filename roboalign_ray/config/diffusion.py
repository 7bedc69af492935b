"""The diffusion world model: its network, its noise, what it sees, and its pre-training."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig, check_warm_up
from roboalign_ray.config.paths import WorldModelOrNone

# A folder from somebody else must not ask for a network that no machine can count.
Channels = Annotated[int, Field(ge=1, le=65_536)]


class DenoiserConfig(FrozenConfig):
    """A U-Net that predicts the clean next clip of all views.

    Attributes:
        views: camera views that share the network and attend to each other.
        height, width: pixels of a view.
        patch: side of the squares of pixels that become channels before the first convolution.
        channels: width of each level; the picture is halved between two levels.
        blocks: residual blocks per level, on the way down and on the way up.
        heads: attention heads.
        attention_levels: levels with attention over the positions of all views, counted from the coarsest.
        history: which known frames the network sees, counted back from the newest (0): near ones dense, far ones
            sparse.
        reference: a frame that stays the same over the whole rollout is seen as well.
        clip_frames: frames predicted at once.
        past_actions: actions before the clip that the network sees beside those of the clip.
        action_dims: numbers of an action.
        largest_motion: pixels by which a part of the newest frame may move within one clip.
    """

    views: int = Field(1, ge=1, le=64)
    height: int = Field(64, ge=1, le=8192)
    width: int = Field(64, ge=1, le=8192)
    patch: int = Field(4, ge=1, le=64)
    channels: tuple[Channels, ...] = Field((64, 128, 256), min_length=1, max_length=8)
    blocks: int = Field(2, ge=1, le=64)
    heads: int = Field(4, ge=1, le=1024)
    attention_levels: int = Field(2, ge=0, le=8)
    history: tuple[NonNegativeInt, ...] = Field((0, 1, 2, 5), min_length=1, max_length=64)
    reference: bool = True
    clip_frames: int = Field(1, ge=1, le=256)
    past_actions: int = Field(2, ge=0, le=1024)
    action_dims: int = Field(4, ge=1, le=4096)
    largest_motion: float = Field(16.0, gt=0, le=8192)

    @field_validator("history")
    @classmethod
    def _check_history(cls, history: tuple[int, ...]) -> tuple[int, ...]:
        if history[0] != 0 or any(a >= b for a, b in pairwise(history)):
            raise ConfigError(
                f"{list(history)} does not begin with 0, the newest frame, and ascend",
                where="diffusion.denoiser.history",
                remedy="sort the frames, counted back from the newest: [0, 1, 2, 5]",
            )
        return history

    @model_validator(mode="after")
    def _check_sizes(self) -> DenoiserConfig:
        coarsest = self.patch * 2 ** (len(self.channels) - 1)
        for name in ("height", "width"):
            if getattr(self, name) % coarsest:
                raise ConfigError(
                    f"{name} {getattr(self, name)} is not a multiple of {coarsest}",
                    where="diffusion.denoiser",
                    remedy=f"patch {self.patch} and {len(self.channels)} levels divide a view by {coarsest}",
                )
        for channels in self.channels[max(0, len(self.channels) - self.attention_levels) :]:
            if channels % self.heads:
                raise ConfigError(
                    f"{channels} channels do not divide among {self.heads} heads",
                    where="diffusion.denoiser.heads",
                )
        return self

    @property
    def seen(self) -> int:
        """Frames over which the history reaches: one more than the farthest."""
        return 1 + self.history[-1]


class NoiseConfig(FrozenConfig):
    """How clips and their history are made noisy in training, and how a clip is sampled.

    Attributes:
        residual_scale: what is denoised is a clip's change from the newest known frame, divided by this; about the
            standard deviation of that change on the scale [-1, 1].
        pure_share: share of training samples that are noise alone, without a trace of the target. Without them the
            network reads the target through the noise and ignores the actions.
        loss_weight_limit: limit of the weight (1 + s^2) / s^2 of a sample with noise-to-signal ratio s.
        history_noise: largest standard deviation of the noise on the history, on the scale [-1, 1].
        history_clean: share of training samples whose history stays clean.
        steps: denoising steps of a sample.
    """

    residual_scale: float = Field(0.15, gt=0)
    pure_share: float = Field(0.5, ge=0, le=1)
    loss_weight_limit: float = Field(5.0, gt=0)
    history_noise: float = Field(0.12, ge=0)
    history_clean: float = Field(0.25, ge=0, le=1)
    steps: int = Field(1, ge=1, le=64)


class DiffusionTrainingConfig(FrozenConfig):
    """Pre-training. Each window is predicted clip by clip, and every clip is trained.

    Attributes:
        start: folder of a diffusion world model whose weights and action card the training begins with; null begins
            with new weights.
        steps: optimizer steps.
        windows_per_step: windows over all workers.
        clips_per_window: clips that are predicted in a window, one after the other.
        context_range: the reference frame is drawn from this many frames before the window's start.
        own_history: share of windows whose later clips continue the model's own predictions, made in one step each.
            The other windows always continue real frames.
        own_history_from: share of the training after which own histories begin.
        own_history_grown: share of the training after which they reach over all clips of a window. In between, their
            length grows linearly.
        perceptual_weight: weight of LPIPS between predicted and real clips; 0 leaves it out.
        perceptual_network: its backbone.
        learning_rate: of AdamW, at the end of the warm-up.
        schedule: after the warm-up, "constant" keeps the rate, "cosine" lowers it to 5 %.
        warmup_steps: steps of linear warm-up; null takes a tenth of the steps, at most 1,000.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient; a longer one is scaled down to it.
        precision: autocast type.
        ema_decay: decay of the weight average that is kept; 0 keeps the last weights.
        log_every, checkpoint_every: steps between rows of the metrics, and between checkpoints.
    """

    start: WorldModelOrNone = None
    steps: PositiveInt = 20_000
    windows_per_step: PositiveInt = 8
    clips_per_window: PositiveInt = 4
    context_range: PositiveInt = 40
    own_history: float = Field(0.5, ge=0, le=1)
    own_history_from: float = Field(0.2, ge=0, le=1)
    own_history_grown: float = Field(0.6, ge=0, le=1)
    perceptual_weight: float = Field(4.0, ge=0)
    perceptual_network: Literal["alex", "vgg", "random-alex", "random-vgg"] = "alex"
    learning_rate: float = Field(3e-4, gt=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: NonNegativeInt | None = None
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float = Field(0.999, ge=0, lt=1)
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 500

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return min(1000, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _check(self) -> DiffusionTrainingConfig:
        check_warm_up(self.warmup_steps, self.steps, "diffusion.training.warmup_steps")
        if self.own_history_grown < self.own_history_from:
            raise ConfigError(
                f"own histories are fully grown at {self.own_history_grown}, before they begin at "
                f"{self.own_history_from}",
                where="diffusion.training.own_history_grown",
            )
        return self


class DiffusionConfig(FrozenConfig):
    """The diffusion world model of a job whose `world_model_kind` is "diffusion".

    Attributes:
        denoiser: the network and what it sees.
        noise: noise in training and sampling.
        training: pre-training.
    """

    denoiser: DenoiserConfig = DenoiserConfig()
    noise: NoiseConfig = NoiseConfig()
    training: DiffusionTrainingConfig = DiffusionTrainingConfig()

    @property
    def window_frames(self) -> int:
        """Frames of a training window: the history's reach and the clips that are predicted."""
        return self.denoiser.seen + self.training.clips_per_window * self.denoiser.clip_frames
