"""Whether the inverse dynamics model of a job may reward: its files, profile, gate, actions and views."""

from __future__ import annotations

from roboalign_ray.episodes.action_card_check import check_cards
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.inverse_dynamics.kinematics import least_steps
from roboalign_ray.pipelines.preflight.inputs import Preflight

_WHERE = "reward.executability"


def check_executability(job: Preflight) -> None:
    """Where executability rewards: its model may reward, and knows the job's actions and views."""
    settings = job.config.reward.executability
    if settings.weight == 0:
        return
    from roboalign_ray.rewards.executability import check_may_reward

    checked = check_may_reward(settings)
    card, model = checked.card, str(checked.folder)
    stride = job.config.episodes.frame_stride
    names = ("the store", "the inverse dynamics model")
    check_cards(job.store_card, card, names=names, frame_stride=stride).require(
        f"{job.store.path} and {model}"
    )
    _check_lengths(job, least_steps(card.kinds))
    _check_views(job, checked.description.views, model)


def _check_lengths(job: Preflight, least: int) -> None:
    """Every training rollout is long enough for a jerk."""
    rollout = job.config.rollout
    lengths = {"rollout.horizon": rollout.horizon}
    if rollout.branching.most:
        lengths["rollout.branching.clip_frames"] = rollout.branching.clip_frames
    if rollout.horizons.shape != "fixed":
        lengths["rollout.horizons.least"] = rollout.horizons.least
    for where, frames in lengths.items():
        if frames < least:
            raise UserError(
                f"rollouts of {frames} frames are too short for executability, a jerk needs {least}",
                where=where,
                remedy=f"set it to {least} or more, or reward.executability.weight to 0",
            )


def _check_views(job: Preflight, wanted: tuple[str, ...], model: str) -> None:
    """The world model predicts the views that the inverse dynamics model sees, as far as the job names them."""
    episodes = job.config.episodes
    named = episodes.views or (() if episodes.view is None else (episodes.view,))
    missing = [view for view in wanted if view not in named]
    if named and wanted != ("",) and missing:
        raise UserError(
            f"the inverse dynamics model sees the view '{missing[0]}', the world model predicts {', '.join(named)}",
            where=f"{_WHERE}.model {model}",
            remedy="train it on the views that the world model has",
        )
