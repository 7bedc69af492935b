"""RobotWorldBench: number and kinds of labelled videos, and the privileged teacher's thresholds.

RoboAlign-R1 (arXiv 2605.03821) publishes the size (10,000 pairs) and the mixture of sources, but no shares and no
thresholds: every number here is a choice of this project, marked [ours].
"""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig, Seed
from roboalign_ray.config.world_model import RefreshPolicy


class PrivilegedConfig(FrozenConfig):
    """Thresholds from measurements to points. Grey levels are of 255, lengths in metres.

    Attributes:
        tolerance: mean error in a region that costs nothing, in grey levels: that of a video tokenizer.
        region_floor: minimum divisor of a region's error, in grey levels, for regions that hardly change.
        freeze_share: a frame is frozen when it changes by less than this share of the real frame's change.
        still: a real frame with a smaller mean change, in grey levels, counts as standing still.
        flicker_limit: excess of the second temporal difference over the real clip's, in grey levels, that costs all
            points.
        jump_limit: excess of the largest change of an 8x8 block, likewise.
        untouched_limit: excess of the change in an untouched object, likewise.
        background_limit: mean error in regions where nothing moves in the real clip, likewise.
        least_sharpness: share of the real clip's gradient energy at which all points are lost.
        progress_scale: a distance that shrinks by this length, or to nothing, is full progress.
        near: a hand this close to the object has reached it.
        penetration_limit: depth of overlap that costs the whole point of contact realism; half of this depth costs
            nothing.
        absent_share: share of the points of physics that remain if there is no trace of the object at its place.
    """

    tolerance: float = Field(6.0, ge=0)
    region_floor: PositiveFloat = 20.0
    freeze_share: float = Field(0.1, ge=0, lt=1)
    still: PositiveFloat = 0.25
    flicker_limit: PositiveFloat = 15.0
    jump_limit: PositiveFloat = 80.0
    untouched_limit: PositiveFloat = 25.0
    background_limit: PositiveFloat = 25.0
    least_sharpness: float = Field(0.2, ge=0, lt=1)
    progress_scale: PositiveFloat = 0.1
    near: PositiveFloat = 0.06
    penetration_limit: PositiveFloat = 0.05
    absent_share: float = Field(0.3, ge=0, le=1)


class BenchConfig(FrozenConfig):
    """The pairs that `roboalign bench build` makes.

    Attributes:
        pairs: labelled videos [published: 10,000].
        frames: number of frames of a video, including the start frame.
        real, counterfactual, degraded, rollout: shares of the pairs; kinds that a run cannot make are replaced by the
            rest.
        strengths: strengths of degradations, equally often.
        refresh, temperatures: refresh policies and sampling temperatures of rollouts, every combination equally often.
        window: number of frames between context refreshes.
        samples: number of rollouts of one prompt.
        completing: share of clips (of degraded clips: all) in which the task is completed, if the store has this
            information; other clips begin anywhere.
        level_cap: maximum share of counterfactuals, or of rollouts, in a bin of one point of the total.
        seed: seed of all draws.
    """

    pairs: PositiveInt = 10_000
    frames: int = Field(13, ge=4)
    real: float = Field(0.1, ge=0)
    counterfactual: float = Field(0.2, ge=0)
    degraded: float = Field(0.5, ge=0)
    rollout: float = Field(0.2, ge=0)
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    refresh: tuple[RefreshPolicy, ...] = ("none", "swr", "reference_recent")
    temperatures: tuple[float, ...] = (0.5, 1.0, 1.5)
    window: PositiveInt = 6
    samples: PositiveInt = 4
    completing: float = Field(0.75, ge=0, le=1)
    level_cap: float = Field(0.35, gt=0.1, le=1)
    seed: Seed = 0
    privileged: PrivilegedConfig = PrivilegedConfig()

    @model_validator(mode="after")
    def _check_mixture(self) -> BenchConfig:
        if self.real + self.counterfactual + self.degraded + self.rollout <= 0:
            raise ConfigError("all shares are 0", where="bench", remedy="give at least one kind a share")
        if not self.strengths or not all(0 < strength <= 1 for strength in self.strengths):
            raise ConfigError(f"strengths {list(self.strengths)} are not within (0, 1]", where="bench")
        if not self.refresh or not self.temperatures or min(self.temperatures) < 0:
            raise ConfigError("refresh or temperatures are empty or below 0", where="bench")
        return self
