"""The rubric: six dimensions, their maxima, and what each score level means.

Order and maxima are those of RoboAlign-R1 (arXiv 2605.03821); they sum to ten, which is what a real video of a task
well done gets. The wording of the levels is ours. A dimension's name, place and maximum are defined here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from roboalign_ray.foundation.failures import UserError


@dataclass(frozen=True)
class Dimension:
    """One thing that a video is judged on.

    Attributes:
        name: identifier, as it stands in tables and files.
        title: for people.
        maximum: points of a faultless video; the worst gets 0. Scores between the levels are allowed.
        levels: score -> what a video that deserves it looks like, every whole score from 0 to the maximum.
    """

    name: str
    title: str
    maximum: int
    levels: Mapping[int, str]


DIMENSIONS: tuple[Dimension, ...] = (
    Dimension(
        "instruction_following",
        "Instruction following",
        3,
        {
            0: "What the robot does has nothing to do with the instruction: another object, another motion, or none.",
            1: "The robot turns to the right place or object, but does not do what was asked with it.",
            2: "The right action on the right object is under way, but is incomplete, or something else is done too.",
            3: "The robot does what the instruction asks, to the object it names, and nothing that contradicts it.",
        },
    ),
    Dimension(
        "manipulation_success",
        "Manipulation success",
        2,
        {
            0: "The manipulation fails: the object is never moved by the robot, or it ends where it must not be.",
            1: "Part of it is achieved: the object is reached, held or moved the right way, but the goal is missed.",
            2: "The goal is reached in the video: the object ends where, and as, the task wants it.",
        },
    ),
    Dimension(
        "action_outcome_consistency",
        "Action-outcome consistency",
        1,
        {
            0: "Motion and effect do not belong together: the arm ignores its commands, or objects their push.",
            1: "Every motion follows from the commands, and every change of the scene from a motion of the robot.",
        },
    ),
    Dimension(
        "temporal_consistency",
        "Temporal consistency",
        1,
        {
            0: "Frames do not continue each other: jumps, frozen stretches, flicker, or things that come and go.",
            1: "One continuous take: steady pace, steady light, and everything keeps its identity and shape.",
        },
    ),
    Dimension(
        "contact_realism",
        "Contact realism",
        1,
        {
            0: "Contacts are wrong: gripper and object pass through each other, or things move untouched.",
            1: "Objects move when they are touched, as the touch demands, and stop at each other's surfaces.",
        },
    ),
    Dimension(
        "physics_adherence",
        "Physics adherence",
        2,
        {
            0: "The scene breaks basic physics: things vanish, multiply, melt, float, or run backwards in time.",
            1: "Mostly plausible, with visible faults: some deformation, drift, or motion too fast or too slow.",
            2: "Nothing in the scene is physically impossible: solid things stay solid, speeds and falls look right.",
        },
    ),
)


def names() -> tuple[str, ...]:
    """The six names, in order."""
    return tuple(dimension.name for dimension in DIMENSIONS)


def maxima() -> np.ndarray:
    """Most points per dimension, float64 [6]."""
    return np.array([dimension.maximum for dimension in DIMENSIONS], dtype=np.float64)


def position(name: str) -> int:
    """Where a dimension stands in a score vector.

    Raises:
        UserError: there is no such dimension.
    """
    try:
        return names().index(name)
    except ValueError:
        raise UserError(
            f"unknown dimension '{name}'", where="rubric", remedy=f"one of: {', '.join(names())}"
        ) from None


def normalise(scores: np.ndarray) -> np.ndarray:
    """Rubric points [..., 6] to shares of the maxima in [0, 1], same float type.

    Raises:
        UserError: the last axis is not the six dimensions.
    """
    return _floats(scores) / maxima().astype(_floats(scores).dtype)


def denormalise(shares: np.ndarray) -> np.ndarray:
    """Shares of the maxima [..., 6] to rubric points, same float type.

    Raises:
        UserError: the last axis is not the six dimensions.
    """
    return _floats(shares) * maxima().astype(_floats(shares).dtype)


def check_scores(scores: np.ndarray, where: str = "scores") -> np.ndarray:
    """Rubric points as float32 [..., 6], checked.

    Raises:
        UserError: the last axis is not the six dimensions, or a score is not between 0 and its maximum.
    """
    points = _floats(scores, where).astype(np.float32)
    for number, dimension in enumerate(DIMENSIONS):
        column = points[..., number]
        if not bool(np.all((column >= 0) & (column <= dimension.maximum))):  # NaN is outside too
            worst = column[~((column >= 0) & (column <= dimension.maximum))].flat[0]
            raise UserError(
                f"{dimension.name} is {worst:g}, not within 0 to {dimension.maximum}", where=where
            )
    return points


def _floats(values: np.ndarray, where: str = "scores") -> np.ndarray:
    array = np.asarray(values)
    if array.ndim < 1 or array.shape[-1] != len(DIMENSIONS):
        raise UserError(f"shape {array.shape} does not end in {len(DIMENSIONS)} dimensions", where=where)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
