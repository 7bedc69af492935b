"""The diffusion world model: its network, its noise, and what it sees."""

from __future__ import annotations

from pydantic import Field, PositiveInt, field_validator

from roboalign_ray.config.base import FrozenConfig


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
        history: which known frames the network sees, counted back from the newest (0). Near ones dense, far ones sparse.
        reference: the first frame of the rollout is seen as well.
        clip_frames: frames predicted at once.
        past_actions: actions before the clip that the network sees beside those of the clip.
        action_dims: numbers of an action.
        largest_motion: pixels by which a part of the newest frame may move within one clip.
    """

    views: PositiveInt = 1
    height: PositiveInt = 64
    width: PositiveInt = 64
    patch: PositiveInt = 4
    channels: tuple[PositiveInt, ...] = Field((64, 128, 256), min_length=1)
    blocks: PositiveInt = 2
    heads: PositiveInt = 4
    attention_levels: int = Field(2, ge=0)
    history: tuple[int, ...] = Field((0, 1, 2, 5), min_length=1)
    reference: bool = True
    clip_frames: PositiveInt = 1
    past_actions: int = Field(2, ge=0)
    action_dims: PositiveInt = 4
    largest_motion: float = Field(16.0, gt=0)

    @field_validator("history")
    @classmethod
    def _check_history(cls, history: tuple[int, ...]) -> tuple[int, ...]:
        if history[0] != 0 or any(a >= b for a, b in zip(history, history[1:], strict=False)):
            raise ValueError("begins with 0, the newest frame, and ascends")
        return history


class NoiseConfig(FrozenConfig):
    """How clips and their history are made noisy in training, and how a clip is sampled.

    Attributes:
        residual_scale: standard deviation of a frame's change from the frame before, on the scale [-1, 1]; noise is
            measured in it.
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
    steps: int = Field(2, ge=1, le=64)
