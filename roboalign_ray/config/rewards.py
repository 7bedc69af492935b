"""The reward of a job: a weighted sum of parts, each chosen by name (built-in, installed, or module:attribute).

reward:
  fidelity: {weight: 5, ssim_weight: 0}
  judged: {weight: 1}
  executability: {weight: 1, model: runs/inverse/inverse_dynamics, p0: 3.5}
  my_pkg.rewards:Mine: {weight: 0.5, …}     its own model checks its settings before the job starts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, Extensions, FrozenConfig
from roboalign_ray.config.judge import DIMENSION_COUNT, check_dimension_weights
from roboalign_ray.config.paths import NameOrYaml, PlaceOrNone

SHIPPED_EMBODIMENTS = ("bimanual_eva", "bridge_widowx", "droid_franka", "metaworld_sawyer", "unitree_g1")


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


class ExecutabilityRewardConfig(RewardPartConfig):
    """Whether a robot could execute the motion that a video shows, and whether it is the commanded motion.

    An inverse dynamics model reads actions from the video. Their reward is limit_reward * (1 + P / p0)^-gamma, where
    the penalty P grows with jerk, acceleration and violated limits, scaled down where the video moves less than
    commanded, plus two terms for the actions being the commanded ones. The form and weights of P are those of a public
    re-implementation of EVA (arXiv 2603.17808); the position term, motion floor, following and rank are [ours].

    Attributes:
        weight: weight of the part in the sum; a part of weight 0 is left out.
        model: folder of the inverse dynamics model.
        embodiment: name of a shipped embodiment profile, or a .yaml file; null takes the one of the model's robot.
        p0: penalty at which the reward of limits has fallen to 2^-gamma, calibrated on rollouts of the base model by
            `roboalign executability calibrate`.
        gamma: exponent.
        limit_reward: largest reward of limits, for a penalty of 0.
        jerk_weight, acceleration_weight: weights of the Huber losses of jerk and acceleration.
        velocity_limit_weight, acceleration_limit_weight, position_limit_weight: weights of the squared excess over the
            profile's limits.
        doubt: exponent of the trust in the read actions, which scales the reward of limits: the uncertainty that is
            usual for real frames as a share of the predicted one, at most 1. 0 trusts everything; then a video of
            noise, from which a model reads smooth average motion, is rewarded.
        motion_floor: share of the commanded motion below which the reward of limits is scaled down in proportion; 0 has
            no floor, and then a still video is rewarded.
        still: commanded motion, as a mean share of the velocity limits, below which there is no floor.
        following_weight: weight of 1 / (1 + e²), e the root mean square error between read and commanded actions in
            standard deviations.
        rank_weight: weight of the share of wrong commands that fit the read actions worse than the commanded ones.
            Wrong commands are the commanded ones reversed in time, mirrored, and delayed by half of the clip.
    """

    model: PlaceOrNone = None
    embodiment: NameOrYaml = None
    p0: float | None = Field(None, gt=0)
    gamma: float = Field(0.5, gt=0)
    limit_reward: float = Field(1.0, gt=0)
    jerk_weight: float = Field(0.5, ge=0)
    acceleration_weight: float = Field(0.25, ge=0)
    velocity_limit_weight: float = Field(2.0, ge=0)
    acceleration_limit_weight: float = Field(1.0, ge=0)
    position_limit_weight: float = Field(1.0, ge=0)
    doubt: float = Field(1.0, ge=0)
    motion_floor: float = Field(0.5, ge=0)
    still: float = Field(0.01, ge=0)
    following_weight: float = Field(1.0, ge=0)
    rank_weight: float = Field(0.5, ge=0)

    @model_validator(mode="after")
    def _check_needs(self) -> ExecutabilityRewardConfig:
        if self.weight > 0:
            remedy = "train one with: roboalign pretrain PROFILE --stage inverse_dynamics"
            if self.model is None:
                raise ConfigError(
                    "no inverse dynamics model is named", where="reward.executability.model", remedy=remedy
                )
            if self.p0 is None:
                raise ConfigError(
                    "the penalty is not calibrated",
                    where="reward.executability.p0",
                    remedy="measure it with: roboalign executability calibrate PROFILE",
                )
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
    executability: ExecutabilityRewardConfig = ExecutabilityRewardConfig()

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
        every: dict[str, RewardPartConfig] = {
            "fidelity": self.fidelity,
            "judged": self.judged,
            "executability": self.executability,
        }
        every |= self.__pydantic_extra__ or {}
        return {name: part for name, part in every.items() if part.weight > 0}

    @property
    def needs_judge(self) -> bool:
        """Whether the reward uses a student."""
        return self.judged.weight > 0
