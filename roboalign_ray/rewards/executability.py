"""Executability as a reward: could a robot execute the motion that a video shows, and is it the commanded motion?

    frames ─► inverse dynamics model ─► actions ─► velocity, acceleration, jerk ─► penalty P
                                           │
       limits      limit_reward (1 + P / p0)^-gamma, scaled down where less than motion_floor of the motion is shown,
                   and where the model is less sure than it usually is of real frames
       following   1 / (1 + e²), e the error between read and commanded actions, in standard deviations
       rank        share of wrong commands that fit the read actions worse than the commanded ones

Smoothness alone is highest for a video in which nothing moves, so the motion floor and the terms for following stand
beside it. From noise a model reads smooth, average motion, so its uncertainty counts too. The model must pass its gate
(`inverse_dynamics.measurement`) for the dimensions that the profile weighs. A sample that cannot be read is `Failed`,
never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign_ray.config.rewards import ExecutabilityRewardConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.weight_sync.files import check_weights_file
from roboalign_ray.inverse_dynamics.embodiment import Embodiment, embodiment_of, load_embodiment
from roboalign_ray.inverse_dynamics.kinematics import check_kinds, kinematics
from roboalign_ray.inverse_dynamics.measurement import Measurement
from roboalign_ray.inverse_dynamics.model import (
    WEIGHTS,
    InverseDescription,
    InverseModel,
    load_inverse_model,
    read_inverse_description,
)
from roboalign_ray.inverse_dynamics.penalty import Penalty, penalty_of
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
from roboalign_ray.judge.student.model import with_start
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Score, Scored

WHERE = "reward.executability"
_RATE_TOLERANCE = 0.01
_DISTINCT = 0.1  # standard deviations; a wrong command nearer to the commanded one is left out
_TIES = 0.5
_TRUSTED = 0.5  # mean trust of a plausible clip


class ExecutabilityReward:
    """Implements `Reward`. Components: the penalty P and its terms, the three parts, the share of the commanded motion,
    the trust, the error e, whether all limits are kept, the share of violations, whether the clip is plausible, and the
    model's uncertainty.

    Args:
        model: the inverse dynamics model.
        profile: limits of the robot.
        config: weights.
        usual: uncertainty that is usual for real frames (`Measurement.uncertainty`).

    Raises:
        UserError: the profile is not of the model's actions, or the penalty is not calibrated.
    """

    def __init__(
        self, model: InverseModel, profile: Embodiment, config: ExecutabilityRewardConfig, usual: float
    ) -> None:
        check_profile(model.card, profile, model.where)
        if config.p0 is None:
            raise UserError("the penalty is not calibrated", where=f"{WHERE}.p0")
        self.model, self.profile, self.config, self.usual = model, profile, config, usual

    @classmethod
    def from_context(cls, config: ExecutabilityRewardConfig, context: RewardContext) -> ExecutabilityReward:
        """The configured model on the scorer's device.

        Raises:
            UserError: the model or the profile cannot be read, they do not fit, or the gate is closed.
        """
        checked = check_may_reward(config)
        model = load_inverse_model(checked.folder, context.device)
        return cls(model, checked.profile, config, checked.measurement.uncertainty)

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        samples = len(inputs.generated)
        if (fault := inputs.fault() or self._fault(inputs)) is not None:
            return [fault] * samples
        assert inputs.actions is not None
        clips = with_start(inputs.start, inputs.generated)
        try:
            read = self.model.read(clips, inputs.views)
            uncertainty = self.model.uncertainty(read)
            trust = np.minimum(1.0, self.usual / np.maximum(uncertainty, np.finfo(float).tiny))
            terms = executability_terms(
                read.actions, inputs.actions, self._clip(inputs), self.profile, self.config, trust
            )
        except UserError as error:
            return [Failed(error.line(), "missing")] * samples
        return [terms.scored(n, {"uncertainty": float(uncertainty[n].mean())}) for n in range(samples)]

    def _clip(self, inputs: RewardInput) -> ClipFacts:
        rate = inputs.fps or self.model.card.rate
        dt = self.profile.dt if rate is None else 1 / rate
        return ClipFacts(self.model.card, self.model.normaliser, dt)

    def _fault(self, inputs: RewardInput) -> Failed | None:
        """The reason why the clip is not one of the model's; None if it is."""
        card = self.model.card
        if inputs.actions is None:
            return Failed("no commanded actions to compare with", "missing")
        if inputs.actions.shape[1] != card.dims:
            dims = f"{inputs.actions.shape[1]} dimensions, the inverse dynamics model {card.dims}"
            return Failed(f"the commanded actions have {dims}", "shape")
        shown, known = inputs.fps, card.rate
        if shown is not None and known is not None and abs(shown - known) > _RATE_TOLERANCE * known:
            return Failed(
                f"the clip has {shown:g} frames per second, the inverse dynamics model {known:g}", "shape"
            )
        if inputs.embodiment and card.embodiments and inputs.embodiment not in card.embodiments:
            return Failed(
                f"the robot is {inputs.embodiment:.60}, the inverse dynamics model is of "
                f"{', '.join(card.embodiments):.100}",
                "shape",
            )
        return None


@dataclass(frozen=True)
class CheckedModel:
    """A model that may reward, without its weights.

    Attributes:
        folder: the model's.
        description, card, measurement: what its files say.
        profile: limits of its robot.
    """

    folder: Path
    description: InverseDescription
    card: ActionCard
    measurement: Measurement
    profile: Embodiment


def check_may_reward(config: ExecutabilityRewardConfig) -> CheckedModel:
    """Check that the configured model may reward; reads no weights.

    Raises:
        UserError: the model or the profile cannot be read, they do not fit, or the gate is closed.
    """
    if config.model is None:
        raise UserError(
            "no inverse dynamics model is named",
            where=f"{WHERE}.model",
            remedy="train one with: roboalign pretrain PROFILE --stage inverse_dynamics",
        )
    folder = Path(config.model)
    described, card = read_inverse_description(folder)
    check_weights_file(folder / WEIGHTS)
    profile = open_profile(config, card)
    check_profile(card, profile, config.model)
    measurement = Measurement.load(folder)
    measurement.assert_open(config.model, profile.weight.tolist())
    return CheckedModel(folder, described, card, measurement, profile)


def open_profile(config: ExecutabilityRewardConfig, card: ActionCard) -> Embodiment:
    """The profile that a config names, or the one of the card's robot.

    Raises:
        UserError: there is none, or it is not of these actions.
    """
    if config.embodiment is None:
        return embodiment_of(card, f"{WHERE}.embodiment")
    return load_embodiment(config.embodiment)


def check_profile(card: ActionCard, profile: Embodiment, where: str) -> None:
    """Check that the motion of the card's actions is known and that the profile limits them.

    Raises:
        UserError: a kind is unknown, or the profile is of other actions.
    """
    check_kinds(card.kinds)
    profile.check_card(card, where)


# --- the terms, without pictures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipFacts:
    """What the numbers of an action are.

    Attributes:
        card: kinds of the dimensions.
        normaliser: their standard deviations.
        dt: seconds that one action covers.
    """

    card: ActionCard
    normaliser: ActionNormaliser
    dt: float


@dataclass(frozen=True)
class ExecutabilityTerms:
    """The reward of G samples and its parts.

    Attributes:
        limits, following: float64 [G, T]; of each step, the reward of limits with floor and trust, and of following.
        penalty: P and its terms.
        parts: name to float64 [G]: weighted parts of the total, whose sum is the reward.
        trust: float64 [G], mean trust in the read actions.
        motion: float64 [G], shown motion as a share of the commanded one; 1 where the command is still.
        error: float64 [G], root mean square error in standard deviations.
        plausible: bool [G], all limits are kept, enough of the commanded motion is shown, and the reading is trusted. A
            frozen video and one of noise keep all limits.
    """

    limits: np.ndarray
    following: np.ndarray
    penalty: Penalty
    parts: dict[str, np.ndarray]
    trust: np.ndarray
    motion: np.ndarray
    error: np.ndarray
    plausible: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Float64 [G]: the reward."""
        return np.sum(list(self.parts.values()), axis=0)

    def scored(self, sample: int, more: dict[str, float]) -> Score:
        """One sample's score. A frame's share is the total plus how far the frame's own terms are from their mean."""
        total = float(self.total[sample])
        frames = self.limits[sample] + self.following[sample]
        per_frame = total + frames - frames.mean()
        if not np.isfinite([total, *per_frame]).all():
            return Failed("the actions read from the video are not finite", "nan")
        named = {
            **self.parts,
            "penalty": self.penalty.total,
            **{f"penalty_{name}": value for name, value in self.penalty.terms.items()},
            "trust": self.trust,
            "motion": self.motion,
            "error": self.error,
            "within_limits": self.penalty.within,
            "violations": self.penalty.violations,
            "plausible": self.plausible,
        }
        components = {name: float(value[sample]) for name, value in named.items()}
        return Scored(total, {**components, **more}, per_frame=per_frame)


def executability_terms(
    read: np.ndarray,
    commanded: np.ndarray,
    clip: ClipFacts,
    profile: Embodiment,
    config: ExecutabilityRewardConfig,
    trust: np.ndarray | None = None,
) -> ExecutabilityTerms:
    """The terms of actions that were read from G samples of one command.

    Args:
        read: float [G, T, A] in physical units.
        commanded: float [T, A] in the same units.
        trust: float [G, T], 0 to 1, in each read action; None trusts all.

    Raises:
        UserError: the clip is too short, or a kind is unknown.
    """
    if config.p0 is None:
        raise UserError("the penalty is not calibrated", where=f"{WHERE}.p0")
    shown = kinematics(read, clip.card.kinds, clip.dt)
    wanted = kinematics(commanded, clip.card.kinds, clip.dt)
    penalty = penalty_of(shown, profile, config)
    motion, floor = _motion(shown.velocity, wanted.velocity, profile, config)
    trust = np.ones(read.shape[:-1]) if trust is None else trust
    trusted = trust**config.doubt
    scale = config.limit_reward * floor
    limits = scale[:, None] * trusted * (1 + penalty.per_frame / config.p0) ** -config.gamma
    clip_limits = scale * trusted.mean(-1) * (1 + penalty.total / config.p0) ** -config.gamma
    errors = _errors(read, commanded, clip, profile)
    error = np.sqrt(errors.mean(-1))
    parts = {
        "limits": clip_limits,
        "following": config.following_weight / (1 + error**2),
        "rank": config.rank_weight * command_rank(read, commanded, clip, profile),
    }
    following = config.following_weight / (1 + errors)
    plausible = penalty.within & (motion >= config.motion_floor) & (trust.mean(-1) >= _TRUSTED)
    return ExecutabilityTerms(limits, following, penalty, parts, trust.mean(-1), motion, error, plausible)


def _motion(
    shown: np.ndarray, wanted: np.ndarray, profile: Embodiment, config: ExecutabilityRewardConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the commanded motion that is shown [G], and the factor of the motion floor [G]."""
    limit, moves = np.asarray(profile.velocity), profile.moves

    def mean_speed(velocity: np.ndarray) -> np.ndarray:
        if not moves.any():
            return np.zeros(velocity.shape[:-2])
        return np.nanmean(np.abs(velocity)[..., moves] / limit[moves], axis=(-1, -2))

    commanded = float(mean_speed(wanted))
    if commanded < max(config.still, np.finfo(float).tiny):
        return np.ones(len(shown)), np.ones(len(shown))
    share = np.minimum(mean_speed(shown) / commanded, 1e12)
    if config.motion_floor == 0:
        return share, np.ones(len(shown))
    return share, np.minimum(1.0, share / config.motion_floor)


def _errors(read: np.ndarray, commanded: np.ndarray, clip: ClipFacts, profile: Embodiment) -> np.ndarray:
    """Weighted mean square error in standard deviations of each step, [..., T]."""
    weight = profile.weight / profile.weight.sum()
    scaled = np.clip((np.asarray(read, np.float64) - commanded) / clip.normaliser.std, -1e6, 1e6)
    return (scaled**2) @ weight


def wrong_commands(commanded: np.ndarray, clip: ClipFacts) -> np.ndarray:
    """Commands that are not the given one: reversed in time, mirrored, and delayed by half of the clip.

    Args:
        commanded: float [T, A].

    Returns:
        float64 [3, T, A]; increments and velocities are mirrored at 0, positions at their mean.
    """
    values = np.asarray(commanded, np.float64)
    backwards = values[::-1] * np.where(clip.normaliser.rates, -1.0, 1.0)
    middle = np.where(clip.normaliser.rates, 0.0, values.mean(0))
    return np.stack([backwards, 2 * middle - values, np.roll(values, len(values) // 2, axis=0)])


def command_rank(read: np.ndarray, commanded: np.ndarray, clip: ClipFacts, profile: Embodiment) -> np.ndarray:
    """Share of the wrong commands that fit the read actions worse than the commanded ones; ties count half.

    Args:
        read: float [G, T, A].
        commanded: float [T, A].

    Returns:
        float64 [G], 0 to 1; 0.5 where every wrong command is almost the commanded one.
    """
    wrong = wrong_commands(commanded, clip)
    distinct = np.sqrt(_errors(wrong, commanded, clip, profile).mean(-1)) >= _DISTINCT
    if not distinct.any():
        return np.full(len(read), _TIES)
    own = _errors(read, commanded, clip, profile).mean(-1)
    others = np.stack([_errors(read, command, clip, profile).mean(-1) for command in wrong[distinct]])
    return ((others > own) + _TIES * (others == own)).mean(0)
