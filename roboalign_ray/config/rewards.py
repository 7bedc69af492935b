"""What a job rewards: fidelity to the real continuation, the student's scores, or a weighted sum of both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig
from roboalign_ray.config.judge import DIMENSION_COUNT, check_dimension_weights


class FidelityRewardConfig(FrozenConfig):
    """-lpips_weight*LPIPS + ssim_weight*SSIM against the real continuation, mean over frames.

    Attributes:
        lpips_weight, ssim_weight: of the two terms.
        lpips_network: backbone of LPIPS. "random-alex" and "random-vgg" have no pre-trained weights: their distance is
            not LPIPS, and is a reward only where it is asked for by name.
    """

    lpips_weight: float = Field(1.0, ge=0)
    ssim_weight: float = Field(1.0, ge=0)
    lpips_network: Literal["alex", "vgg", "random-alex", "random-vgg"] = "alex"


class JudgedRewardConfig(FrozenConfig):
    """R = sum_k w_k g_k over the six rubric scores [published form]; the weights are [ours].

    Attributes:
        weights: per dimension, in points: all 1 makes R the total out of ten.
        uncertainty_penalty: subtracted per point of the student's standard deviation; 0 ignores it.
        batch: clips the student sees at once.
    """

    weights: tuple[float, ...] = (1.0,) * DIMENSION_COUNT
    uncertainty_penalty: float = Field(0.0, ge=0)
    batch: PositiveInt = 32

    @model_validator(mode="after")
    def _check_weights(self) -> JudgedRewardConfig:
        check_dimension_weights(self.weights, "reward.judged.weights")
        return self


class RewardWeights(FrozenConfig):
    """How much each part counts; a part of weight 0 is left out.

    Attributes:
        fidelity, judged: weight of the part.
    """

    fidelity: float = Field(1.0, ge=0)
    judged: float = Field(0.0, ge=0)


class RewardConfig(FrozenConfig):
    """The weighted sum of the parts."""

    weights: RewardWeights = RewardWeights()
    fidelity: FidelityRewardConfig = FidelityRewardConfig()
    judged: JudgedRewardConfig = JudgedRewardConfig()

    @model_validator(mode="after")
    def _check_parts(self) -> RewardConfig:
        if self.weights.fidelity + self.weights.judged <= 0:
            raise ConfigError(
                "all parts have weight 0",
                where="reward.weights",
                remedy="give fidelity or judged a weight above 0",
            )
        return self

    @property
    def needs_judge(self) -> bool:
        """Whether a student has a say."""
        return self.weights.judged > 0
