"""The reward of a job: a weighted sum of parts, each chosen by name (built-in, installed, or module:attribute).

reward:
  fidelity: {weight: 5, ssim_weight: 0}
  judged: {weight: 1}
  my_pkg.rewards:Mine: {weight: 0.5, …}     its own model checks its settings before the job starts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, Extensions, FrozenConfig
from roboalign_ray.config.judge import DIMENSION_COUNT, check_dimension_weights


class RewardPartConfig(FrozenConfig):
    """Base of all parts.

    Attributes:
        weight: weight of the part in the sum; a part of weight 0 is left out.
    """

    weight: float = Field(0.0, ge=0)


class FidelityRewardConfig(RewardPartConfig):
    """-lpips_weight*LPIPS + ssim_weight*SSIM + psnr_weight*PSNR to the real continuation, mean over frames and views.

    Attributes:
        weight: weight of the part in the sum; a part of weight 0 is left out.
        lpips_weight, ssim_weight: weights of the two terms.
        psnr_weight: weight of a decibel of PSNR.
        lpips_network: backbone of LPIPS. "random-alex" and "random-vgg" have no pre-trained weights: their distance is
            not LPIPS, and is used only if it is named here.
    """

    lpips_weight: float = Field(1.0, ge=0)
    ssim_weight: float = Field(1.0, ge=0)
    psnr_weight: float = Field(0.0, ge=0)
    lpips_network: Literal["alex", "vgg", "random-alex", "random-vgg"] = "alex"


class JudgedRewardConfig(RewardPartConfig):
    """R = sum_k w_k g_k over the six rubric scores [published form]; the weights are [ours].

    Attributes:
        weight: weight of the part in the sum; a part of weight 0 is left out.
        weights: weight per dimension, per point: with all 1, R is the total out of ten.
        uncertainty_penalty: subtracted per point of the student's standard deviation; 0 ignores it.
        view: camera view that the student scores: the one of its training. None takes the first.
        batch: number of clips that the student scores at once.
    """

    weights: tuple[float, ...] = (1.0,) * DIMENSION_COUNT
    uncertainty_penalty: float = Field(0.0, ge=0)
    view: str | None = None
    batch: PositiveInt = 32

    @model_validator(mode="after")
    def _check_weights(self) -> JudgedRewardConfig:
        check_dimension_weights(self.weights, "reward.judged.weights")
        return self


class ExtensionRewardConfig(RewardPartConfig):
    """A part that is not built in. It defines all its settings except the weight.

    Attributes:
        weight: weight of the part in the sum; a part of weight 0 is left out.

    `rewards.registry` checks the other keys, `settings`, with the part's own model.
    """

    model_config = ConfigDict(extra="allow")

    weight: float = Field(ge=0)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys beside the weight."""
        return dict(self.model_extra or {})


class RewardConfig(FrozenConfig):
    """The weighted sum of the parts; keys that are not fields name extensions (`roboalign_ray.plugins`)."""

    model_config = ConfigDict(extra="allow")
    extensions: ClassVar[Extensions | None] = Extensions("rewards", ExtensionRewardConfig)
    replaced: ClassVar[Mapping[str, str]] = {
        "weights": "every part has its own: reward: {fidelity: {weight: 5}, judged: {weight: 1}}"
    }
    __pydantic_extra__: dict[str, ExtensionRewardConfig]

    fidelity: FidelityRewardConfig = FidelityRewardConfig()
    judged: JudgedRewardConfig = JudgedRewardConfig()

    @model_validator(mode="after")
    def _check_parts(self) -> RewardConfig:
        if not self.parts:
            raise ConfigError(
                "no part has a weight above 0",
                where="reward",
                remedy="give one, for example reward.fidelity.weight=1",
            )
        return self

    @property
    def parts(self) -> dict[str, RewardPartConfig]:
        """Name to config of every part with a weight above 0, built-in ones first."""
        every: dict[str, RewardPartConfig] = {"fidelity": self.fidelity, "judged": self.judged}
        every |= self.__pydantic_extra__ or {}
        return {name: part for name, part in every.items() if part.weight > 0}

    @property
    def needs_judge(self) -> bool:
        """Whether the reward uses a student."""
        return self.judged.weight > 0
