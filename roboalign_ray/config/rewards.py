"""What a job rewards: a weighted sum of parts, each chosen by name: ours, an installed package's, or module:attribute.

reward:
  fidelity: {weight: 5, ssim_weight: 0}
  judged: {weight: 1}
  my_pkg.rewards:Mine: {weight: 0.5, …}     its settings are checked before the job starts, by its own model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, Extensions, FrozenConfig
from roboalign_ray.config.judge import DIMENSION_COUNT, check_dimension_weights


class RewardPartConfig(FrozenConfig):
    """What all parts have.

    Attributes:
        weight: how much the part counts in the sum; a part of weight 0 is left out.
    """

    weight: float = Field(0.0, ge=0)


class FidelityRewardConfig(RewardPartConfig):
    """-lpips_weight*LPIPS + ssim_weight*SSIM against the real continuation, mean over frames and views.

    Attributes:
        weight: how much the part counts in the sum; a part of weight 0 is left out.
        lpips_weight, ssim_weight: of the two terms.
        lpips_network: backbone of LPIPS. "random-alex" and "random-vgg" have no pre-trained weights: their distance is
            not LPIPS, and is a reward only where it is asked for by name.
    """

    lpips_weight: float = Field(1.0, ge=0)
    ssim_weight: float = Field(1.0, ge=0)
    lpips_network: Literal["alex", "vgg", "random-alex", "random-vgg"] = "alex"


class JudgedRewardConfig(RewardPartConfig):
    """R = sum_k w_k g_k over the six rubric scores [published form]; the weights are [ours].

    Attributes:
        weight: how much the part counts in the sum; a part of weight 0 is left out.
        weights: per dimension, in points: all 1 makes R the total out of ten.
        uncertainty_penalty: subtracted per point of the student's standard deviation; 0 ignores it.
        view: the camera view that the student looks at: the one that it was taught on. None takes the first.
        batch: clips the student sees at once.
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
    """A part that is not built in. Everything but its weight is its own affair.

    Attributes:
        weight: how much the part counts in the sum; a part of weight 0 is left out.

    `rewards.registry` checks the other keys, `settings`, against the part's own model.
    """

    model_config = ConfigDict(extra="allow")

    weight: float = Field(ge=0)

    @property
    def settings(self) -> dict[str, Any]:
        """What was written beside the weight."""
        return dict(self.model_extra or {})


class RewardConfig(FrozenConfig):
    """The weighted sum of the parts; keys beside the fields name extensions (`roboalign_ray.plugins`)."""

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
        """Name to config of every part that counts, ours first."""
        every: dict[str, RewardPartConfig] = {"fidelity": self.fidelity, "judged": self.judged}
        every |= self.__pydantic_extra__ or {}
        return {name: part for name, part in every.items() if part.weight > 0}

    @property
    def needs_judge(self) -> bool:
        """Whether a student has a say."""
        return self.judged.weight > 0
