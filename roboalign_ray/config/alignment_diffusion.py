"""Post-training of a diffusion world model: what its objectives share, and what each has of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig


class OldPolicyConfig(FrozenConfig):
    """The average of the trained weights that rollouts are sampled with. After update n (from 0) it keeps the share
    min(last, first + growth * n) of itself. The published schedules begin at 0 or stay there for a while; then the old
    policy is the trained one, and the objective says nothing. [ours]

    Attributes:
        first: share kept at the first update; above 0.
        growth: added to it at every update.
        last: largest share.
        still_updates: a run ends whose trained policy was exactly the old one for so many updates in a row.
    """

    first: float = Field(0.5, gt=0, lt=1)
    growth: float = Field(0.01, ge=0)
    last: float = Field(0.95, gt=0, lt=1)
    still_updates: PositiveInt = 3

    @model_validator(mode="after")
    def _check_order(self) -> OldPolicyConfig:
        if self.first > self.last:
            raise ConfigError(
                f"the share kept begins at {self.first:g} and may not pass {self.last:g}",
                where="alignment.diffusion.old_policy.first",
                remedy="set it to at most last",
            )
        return self


class LoraConfig(FrozenConfig):
    """Low-rank adapters (arXiv 2106.09685) in the place of training all weights. [ours: ranks are unpublished]

    Attributes:
        rank: of each adapter; 0 trains all weights as they are.
        alpha: its product is scaled by alpha / rank.
        targets: parts of the names of weights that get one; matrices and convolutions alone.
        whole: parts of the names of weights that are trained as they are: the action encoder, as published.
    """

    rank: NonNegativeInt = 8
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] = Field(("down", "up"), min_length=1)
    whole: tuple[str, ...] = ("embed.actions",)


class DiffusionAlignmentConfig(FrozenConfig):
    """What all objectives of a diffusion world model share.

    Attributes:
        clips_per_rollout: clips drawn of each rollout, the same ones for all its samples; 0 takes all. [ours]
        times_per_clip: noise levels drawn per clip and sample. [ours]
        times: where they come from: "sampler", evenly from those that the sampler denoises at, as in the public code;
            "uniform", between `least_time` and 1. [ours]
        least_time: smallest of the uniform ones: the regulariser divides by its square. [ours]
        regulariser: coefficient of the mean squared difference of velocities to the frozen base.
        micro_batch_clips: most clips of one forward and backward pass; changes memory, not the gradient.
        lora: adapters, or none.
        old_policy: the average that rollouts are sampled with.
    """

    clips_per_rollout: NonNegativeInt = 0
    times_per_clip: PositiveInt = 1
    times: Literal["sampler", "uniform"] = "sampler"
    least_time: float = Field(0.05, gt=0, lt=1)
    regulariser: float = Field(1e-4, ge=0)
    micro_batch_clips: PositiveInt = 16
    lora: LoraConfig = LoraConfig()
    old_policy: OldPolicyConfig = OldPolicyConfig()


class NftConfig(FrozenConfig):
    """DiffusionNFT. Defaults are those of its public code.

    Attributes:
        beta: strength of the implicit guidance; the public code takes 1, and 0.1 where several rewards are added.
        advantage_bound: advantage from which on a sample counts as wholly good or wholly bad.
        loss_scale: factor on the policy's terms.
    """

    beta: float = Field(1.0, gt=0)
    advantage_bound: float = Field(5.0, gt=0)
    loss_scale: float = Field(5.0, gt=0)


class FlowGrpoConfig(FrozenConfig):
    """Flow-GRPO. The clip and the bound are those of its public code, which is about pictures.

    Attributes:
        clip: epsilon of the clipped ratio. Log-probabilities are means over a clip's values, so ratios stay near 1.
        advantage_bound: advantages beyond it count as it.
        policies: versions of the weights whose rollouts can be trained on; more than `asynchrony.staleness`. [ours]
    """

    clip: float = Field(1e-4, gt=0, lt=1)
    advantage_bound: float = Field(5.0, gt=0)
    policies: PositiveInt = 4


class ContrastiveConfig(FrozenConfig):
    """Softmax-contrastive weights.

    Attributes:
        beta: sharpness, in deviations of a group's rewards. [ours]
    """

    beta: float = Field(1.0, gt=0)
