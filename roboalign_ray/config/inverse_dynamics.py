"""The inverse dynamics model: its network, its training, and the gate before it may reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig, check_warm_up

Channels = Annotated[int, Field(ge=1, le=65_536)]


class InverseNetworkConfig(FrozenConfig):
    """A convolutional backbone per view, spatial softmax, and an MLP over all views.

    Attributes:
        height, width: pixels of a view; frames of another size are resized.
        reach: the action that leads from frame t to frame t + 1 is read from the frames t - reach to t + reach.
        channels: width of each convolution; every one but the last halves the picture.
        keypoints: positions that the spatial softmax reads from a view.
        hidden, layers: width and number of the MLP's hidden layers.
    """

    height: int = Field(64, ge=8, le=8192)
    width: int = Field(64, ge=8, le=8192)
    reach: int = Field(2, ge=1, le=64)
    channels: tuple[Channels, ...] = Field((16, 32, 64), min_length=1, max_length=16)
    keypoints: int = Field(32, ge=1, le=4096)
    hidden: int = Field(256, ge=1, le=65_536)
    layers: int = Field(2, ge=1, le=64)

    @property
    def frames(self) -> int:
        """Frames from which one action is read."""
        return 2 * self.reach + 1


class InverseTrainingConfig(FrozenConfig):
    """Training on windows of real episodes.

    Attributes:
        steps: optimizer steps.
        windows_per_step: windows over all workers; each has one action.
        huber_delta: error, in standard deviations of the action, above which the loss grows linearly.
        uncertainty_weight: weight of the loss of the predicted uncertainty beside that of the action.
        still: share of samples whose frames are all the same; their increments and velocities are labelled 0, their
            other dimensions are not trained on. A model that never saw a still clip may read motion into one.
        spoiled: share of samples that are mixed with noise beyond recognition, so that the predicted uncertainty is
            large where nothing can be read. Without them a model reads smooth, average motion from noise and is sure of
            it.
        edge: share of samples whose outer frames are repeated, as at the ends of a clip.
        brightness, contrast: largest random change of a sample's frames, as a share of the full scale and of the
            distance from grey.
        pixel_noise: largest standard deviation of random noise on a sample's frames, as a share of the full scale.
        learning_rate: of AdamW, at the end of the warm-up.
        schedule: after the warm-up, "constant" keeps the rate, "cosine" lowers it to 5 %.
        warmup_steps: steps of linear warm-up; null takes a tenth of the steps, at most 200.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient; a longer one is scaled down to it.
        ema_decay: decay of the weight average that is kept; 0 keeps the last weights.
        log_every, checkpoint_every: steps between rows of the metrics, and between checkpoints.
    """

    steps: PositiveInt = 2000
    windows_per_step: PositiveInt = 32
    huber_delta: float = Field(1.0, gt=0)
    uncertainty_weight: float = Field(0.1, gt=0)
    still: float = Field(0.05, ge=0, le=1)
    spoiled: float = Field(0.05, ge=0, le=1)
    edge: float = Field(0.15, ge=0, le=1)
    brightness: float = Field(0.05, ge=0, le=1)
    contrast: float = Field(0.1, ge=0, lt=1)
    pixel_noise: float = Field(0.02, ge=0, le=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: NonNegativeInt | None = None
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 500

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return min(200, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _check(self) -> InverseTrainingConfig:
        check_warm_up(self.warmup_steps, self.steps, "inverse_dynamics.training.warmup_steps")
        return self


class InverseGateConfig(FrozenConfig):
    """What a trained model is measured on, and what it must reach before it may reward.

    Attributes:
        clips, clip_frames: held-out clips that are measured, and frames of each.
        least_r2: smallest share of explained variance (R²) of every dimension that the embodiment profile weighs.
        least_wins: in every trial, smallest share of clips whose actions are recovered better from their own frames
            than from the changed ones.
        moving: clips enter the trials if the root mean square of their actions, in standard deviations around no
            motion, is at least this; without motion a still clip is no mistake.
    """

    clips: PositiveInt = 128
    clip_frames: int = Field(12, ge=4)
    least_r2: float = Field(0.6, le=1)
    least_wins: float = Field(0.9, ge=0, le=1)
    moving: float = Field(0.2, ge=0)


class InverseDynamicsConfig(FrozenConfig):
    """A model that reads actions from video.

    Attributes:
        network: the network and what it sees. Its views are those of `episodes`.
        training: training on real episodes.
        gate: measurement on held-out episodes, and the gate.
    """

    network: InverseNetworkConfig = InverseNetworkConfig()
    training: InverseTrainingConfig = InverseTrainingConfig()
    gate: InverseGateConfig = InverseGateConfig()

    @model_validator(mode="after")
    def _check_clips(self) -> InverseDynamicsConfig:
        if self.gate.clip_frames < self.network.frames:
            raise ConfigError(
                f"clips of {self.gate.clip_frames} frames are shorter than the {self.network.frames} that one action "
                "is read from",
                where="inverse_dynamics.gate.clip_frames",
                remedy="measure longer clips, or set a smaller inverse_dynamics.network.reach",
            )
        return self
