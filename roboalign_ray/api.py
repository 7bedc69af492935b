"""The public surface: what `from roboalign_ray import …` gives. Everything else may change between versions.

    open_store · open_world_model · open_judge       data, model and judge from a folder, or "shipped"
    roll_out · score · plan_actions                  predict frames; judge them; find actions
    load_job · plan · pretrain · align · evaluate    whole jobs, as the commands of the same names run them
    Prompt · WorldModel · Episode                    what goes in and what comes out
    RewardInput · Scored · Failed · UserError        for rewards of your own

Importing this module imports neither torch nor Ray; the functions that need them do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roboalign_ray.config import JobConfig, RolloutConfig
from roboalign_ray.config.loading import resolve_job
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.world_model.protocol import Prompt, WorldModel

if TYPE_CHECKING:
    from roboalign_ray.episodes.episode import Episode
    from roboalign_ray.episodes.store import EpisodeStore
    from roboalign_ray.judge.student.model import Student
    from roboalign_ray.pipelines.align.job import AlignResult
    from roboalign_ray.pipelines.capacity.plan import Plan
    from roboalign_ray.planning.protocol import ActionPlan
    from roboalign_ray.rewards.protocol import RewardInput, Scored

Profile = str | Path | JobConfig
"""A profile's name, the path of a .yaml file, or a loaded job."""

__all__ = [
    "Episode",
    "Failed",
    "JobConfig",
    "Profile",
    "Prompt",
    "RewardInput",
    "Scored",
    "UserError",
    "WorldModel",
    "align",
    "evaluate",
    "load_job",
    "open_judge",
    "open_store",
    "open_world_model",
    "plan",
    "plan_actions",
    "pretrain",
    "roll_out",
    "score",
]


_LATER = {  # names whose modules load PyTorch or PyAV
    "Episode": "roboalign_ray.episodes.episode",
    "RewardInput": "roboalign_ray.rewards.protocol",
    "Scored": "roboalign_ray.rewards.protocol",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'roboalign_ray.api' has no attribute '{name}'")
    return getattr(import_module(_LATER[name]), name)


def open_store(folder: str | Path = "shipped") -> EpisodeStore:
    """Open an episode store; "shipped" is the one inside the package.

    Raises:
        UserError: no store there.

    >>> store = open_store()
    >>> episode = store.read(store.ids[0])
    >>> episode.instruction, episode.view().shape
    ('push the puck to the target on the table', (64, 64, 64, 3))
    """
    from roboalign_ray.episodes.store import open_store

    return open_store(folder)


def open_world_model(folder: str | Path = "shipped", rollout: RolloutConfig | None = None) -> WorldModel:
    """Open a world model of any kind; "shipped" is the one inside the package.

    Args:
        folder: as `pretrain` and `align` leave it.
        rollout: refresh policy, sampling and precision; None takes the defaults.

    Raises:
        UserError: no world model there.

    >>> model = open_world_model()
    >>> model.card.kind, model.card.height, model.card.action_dims
    ('token', 64, 4)
    """
    from roboalign_ray.world_model.registry import open_world_model

    return open_world_model(folder, rollout)


def open_judge(folder: str | Path = "shipped") -> Student:
    """Open a student judge; "shipped" is the one inside the package.

    Raises:
        UserError: no student there.
    """
    from roboalign_ray.judge.student.model import Student
    from roboalign_ray.pipelines.cluster.weight_folders import student_folder

    if str(folder) == "shipped":
        folder = student_folder(JobConfig())
    return Student.load(folder)


def roll_out(
    model: WorldModel,
    frame: np.ndarray,
    actions: np.ndarray,
    *,
    instruction: str = "",
    seeds: Sequence[int] = (0,),
) -> np.ndarray:
    """Predict what follows from a frame and actions.

    Args:
        frame: start frame, uint8 [H, W, 3] or [V, H, W, 3], of the model's size (`model.card`).
        actions: float [T, A] in the units of the episodes.
        instruction: the sentence given to the robot, where the model reads it.
        seeds: one per sample; the same seed gives the same frames.

    Returns:
        uint8 [samples, T, V, H, W, 3].

    Raises:
        UserError: frame or actions do not fit the model.

    >>> store, model = open_store(), open_world_model()
    >>> episode = store.read(store.ids[0])
    >>> frames = roll_out(model, episode.view()[0], episode.actions[:3], seeds=(0, 1))
    >>> frames.shape, frames.dtype
    ((2, 3, 1, 64, 64, 3), dtype('uint8'))
    """
    values = np.asarray(actions, dtype=np.float32)
    prompt = Prompt("roll_out", frame, frame, values, instruction)
    state = model.begin([prompt], [tuple(seeds)])
    return model.frames(model.step(state, values[None]))


def score(
    videos: Sequence[np.ndarray], instruction: str, judge: Student | None = None
) -> list[Mapping[str, float]]:
    """Score videos by the six dimensions of the rubric, in points; "total" is their sum, 10 at most.

    Args:
        videos: uint8 [T, H, W, 3] each, two frames or more.
        instruction: what the robot was asked to do.
        judge: as `open_judge` gives it; None opens the shipped one.

    Raises:
        UserError: a video or the instruction cannot be used.

    >>> episode = open_store().read("metaworld/drawer-open/0/expert")
    >>> [scores] = score([episode.view()[:26:2]], episode.instruction)
    >>> list(scores)[0], 0 <= scores["total"] <= 10
    ('instruction_following', True)
    """
    from roboalign_ray.judge.rubric import names

    judged = (judge or open_judge()).score(list(videos), [instruction] * len(videos))
    return [
        {**dict(zip(names(), map(float, row), strict=True)), "total": float(row.sum())}
        for row in judged.scores
    ]


def plan_actions(env: Any, planner: str = "cem", *, horizon: int = 8, **more: Any) -> ActionPlan:
    """Find actions in the world model of an environment; the environment is not stepped.

    Args:
        env: `gymnasium.make("RoboAlign/WorldModel-v0", …)` or `make_vec`, wrapped or not; reset.
        planner: "cem", "mppi", "random_shooting", "best_of_n", "refine", an installed one, or "module:attribute".
        horizon: actions of the plan.
        more: row, seed, warm, proposals, cost, samples, rows, as `roboalign_ray.planning.plan.plan_actions` has them,
            and settings of the planner, such as candidates and iterations.

    Raises:
        UserError: the environment has no reward and no cost is given, or an argument cannot be used.

    >>> import gymnasium, roboalign_ray.planning
    >>> env = gymnasium.make("RoboAlign/WorldModel-v0", reward="judged")
    >>> seen, info = env.reset(seed=0)
    >>> found = plan_actions(env, "cem", horizon=2, candidates=4, iterations=1)
    >>> found.actions.shape, env.action_space.contains(found.actions[0])
    ((2, 4), True)
    """
    from roboalign_ray.planning.plan import plan_actions

    return plan_actions(env, planner, horizon=horizon, **more)


def load_job(profile: Profile, *overrides: str) -> JobConfig:
    """Load a profile with overrides; relative paths count from the current folder.

    Raises:
        UserError: unknown profile or key, or a wrong value.

    >>> load_job("demo", "alignment.updates=3").alignment.updates
    3
    """
    if isinstance(profile, JobConfig):
        if overrides:
            raise UserError("a loaded job takes no overrides", where="load_job")
        return profile
    return resolve_job(str(profile), overrides)


def plan(profile: Profile, *overrides: str) -> Plan:
    """What a job is made of, and whether it fits this machine or its cluster.

    Raises:
        UserError: as `load_job`; or the cluster cannot be reached.

    >>> plan("demo").missing
    ''
    """
    from roboalign_ray.pipelines.capacity.plan import make_plan

    return make_plan(load_job(profile, *overrides))


def pretrain(profile: Profile, *overrides: str, out: str | Path, quiet: bool = True) -> dict[str, Any]:
    """Train a tokenizer and a world model on an episode store; a run in `out` that was cut short goes on.

    Returns:
        Per stage its last metrics and seconds.

    Raises:
        UserError: as `load_job`; or the store cannot be used.
    """
    from roboalign_ray.pipelines.train.world_model import run_pretrain

    return run_pretrain(load_job(profile, *overrides), Path(out), quiet=quiet)


def align(
    profile: Profile, *overrides: str, out: str | Path, resume: bool = False, quiet: bool = True
) -> AlignResult:
    """Align a world model by reinforcement learning.

    Args:
        out: run directory.
        resume: go on from the last complete checkpoint in it.

    Returns:
        Where the aligned model lies, and the curves.

    Raises:
        UserError: as `load_job`; weights or store cannot be used, or `out` holds another run.
    """
    from roboalign_ray.pipelines.align.job import run_align

    return run_align(load_job(profile, *overrides), Path(out), resume=resume, quiet=quiet)


def evaluate(
    profile: Profile, *overrides: str, out: str | Path, model: str | Path | None = None, quiet: bool = True
) -> dict[str, Any]:
    """Measure a world model on held-out episodes.

    Args:
        out: run directory.
        model: folder of the world model; None takes the job's.

    Returns:
        Every figure, as `evaluation.json` has it.

    Raises:
        UserError: as `load_job`; or weights or store cannot be used.
    """
    from roboalign_ray.pipelines.evaluate.job import run_evaluate

    where = None if model is None else Path(model)
    return run_evaluate(load_job(profile, *overrides), Path(out), model=where, quiet=quiet)
