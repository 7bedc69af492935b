"""One episode of an agent from one start state, and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from roboalign_ray.episodes.sources.metaworld_simulator import MetaworldSimulator
from roboalign_ray.planning.closed_loop.agents import Agent, Plan
from roboalign_ray.planning.closed_loop.scene import Scene


class EpisodeRecord(BaseModel):
    """What came of an episode, as JSON.

    Attributes:
        row: name of the agent.
        task, start: of the start state.
        success: the task was complete at a simulator step, within the decisions.
        decisions: made, up to the completion.
        predicted, real: costs of the plans, in the dynamics and in the simulator; empty for agents without plans.
        began, ended: true object–target and hand–object distance at the first and last frame, metres.
        evaluated: candidates of all plans.
        planning_s, seconds: wall time of the searches, and of the whole episode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    task: str
    start: int
    success: bool
    decisions: int
    predicted: tuple[float, ...] = ()
    real: tuple[float, ...] = ()
    began: tuple[float, float]
    ended: tuple[float, float]
    evaluated: int = 0
    planning_s: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recording:
    """The frames of an episode.

    Attributes:
        real: uint8 [T + 1, V, H, W, 3]; frame 0 is the start.
        imagined: the same shape: at frame t what the plan that was being executed predicted for t; real where there was
            no plan, and at frame 0.
        plans: in order.
    """

    real: np.ndarray
    imagined: np.ndarray
    plans: tuple[Plan, ...]


OnLook = Callable[[Scene, Plan | None], None]


def run_episode(
    row: str,
    simulator: MetaworldSimulator,
    start: int,
    agent: Agent,
    decisions: int,
    on_look: OnLook = lambda scene, plan: None,
) -> tuple[EpisodeRecord, Recording]:
    """Let an agent act until the task is complete or the decisions are used up.

    Args:
        row: name of the agent, for the record.
        start: index of the start state.
        decisions: maximum.
        on_look: called after every look, with the scene and the newest plan.
    """
    clock, scene = time.monotonic(), Scene(simulator, start)
    began, imagined = scene.distances(), [scene.frames[0]]
    plans: list[Plan] = []
    while scene.success_at is None and len(scene.actions) < decisions:
        before = len(scene.actions)
        plan = agent.act(scene, decisions - before)
        made = len(scene.actions) - before
        imagined += list(scene.frames[-made:] if plan is None else plan.imagined[:made])
        plans += [] if plan is None else [plan]
        on_look(scene, plan)
    record = EpisodeRecord(
        row=row,
        task=simulator.task,
        start=start,
        success=scene.success_at is not None,
        decisions=len(scene.actions),
        predicted=tuple(plan.predicted for plan in plans),
        real=tuple(plan.real for plan in plans),
        began=_pair(began),
        ended=_pair(scene.distances()),
        evaluated=sum(plan.evaluated for plan in plans),
        planning_s=sum(plan.seconds for plan in plans),
        seconds=time.monotonic() - clock,
    )
    return record, Recording(np.stack(scene.frames), np.stack(imagined), tuple(plans))


def _pair(distances: np.ndarray) -> tuple[float, float]:
    return float(distances[0]), float(distances[1])


def goal_picture(simulator: MetaworldSimulator, start: int, decisions: int) -> np.ndarray:
    """What is seen when the expert has completed the task from a start state, uint8 [V, H, W, 3].

    Of its own rate, up to twice as many intervals as an agent has decisions; its last frame where it fails.
    """
    scene, policy = Scene(simulator, start), simulator.policy()
    while scene.success_at is None and len(scene.actions) < 2 * decisions:
        scene.drive(lambda observation, done: policy(observation))
    return scene.frames[-1]


@dataclass(frozen=True)
class Starts:
    """Start states of a task.

    Attributes:
        taken: indices to act from.
        solved: indices that were passed over because the task was complete from the beginning.
    """

    taken: tuple[int, ...]
    solved: tuple[int, ...]


def choose_starts(simulator: MetaworldSimulator, first: int, count: int) -> Starts:
    """The first start states from `first` on that are not solved already; at most as many again are passed over."""
    taken: list[int] = []
    solved: list[int] = []
    for index in range(first, first + 2 * count):
        if len(taken) == count:
            break
        simulator.reset(index)
        (solved if simulator.is_solved() else taken).append(index)
    return Starts(tuple(taken), tuple(solved))
