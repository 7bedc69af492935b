"""What a progress network is for: tasks, cameras, frame size, robots, and its errors on held-out starts."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.world_model.protocol import ModelCard

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=10_000)]


class TaskError(BaseModel):
    """Errors of one task on held-out start states.

    Attributes:
        object_target_cm, hand_object_cm: mean absolute errors, centimetres.
        object_target_p90_cm, hand_object_p90_cm: 90th percentiles.
        starts, frames: measured on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    object_target_cm: FiniteFloat
    hand_object_cm: FiniteFloat
    object_target_p90_cm: FiniteFloat
    hand_object_p90_cm: FiniteFloat
    starts: PositiveInt
    frames: PositiveInt

    @classmethod
    def of(cls, predicted: np.ndarray, true: np.ndarray, starts: int) -> TaskError:
        """Of distances [N, 2] in metres, N at least 1."""
        errors = 100 * np.abs(np.asarray(predicted, np.float64) - true)
        mean, p90 = errors.mean(axis=0), np.percentile(errors, 90, axis=0)
        return cls(
            object_target_cm=round(float(mean[0]), 3),
            hand_object_cm=round(float(mean[1]), 3),
            object_target_p90_cm=round(float(p90[0]), 3),
            hand_object_p90_cm=round(float(p90[1]), 3),
            starts=starts,
            frames=len(errors),
        )


class ProgressCard(BaseModel):
    """The meaning of a network's inputs, and how far its outputs can be trusted.

    Attributes:
        tasks: names, in the order of the network's table.
        views: names of the cameras, in the order of the input; the first ones of the world model that it is used with.
        height, width: of every view, pixels.
        embodiments: robots that it was trained on, sorted.
        store: name of the store of its training.
        starts: start states of the training, over all tasks.
        errors: by task, on held-out starts; a task without held-out starts has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
    views: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    height: PositiveInt
    width: PositiveInt
    embodiments: tuple[Name, ...] = ()
    store: Text = ""
    starts: int = Field(0, ge=0)
    errors: dict[Name, TaskError] = {}

    def task(self, name: str, where: str) -> int:
        """The number of a task.

        Raises:
            UserError: the network was not trained on it; the nearest one is named.
        """
        if name not in self.tasks:
            raise UserError(
                f"was not trained on the task '{name}'",
                where=where,
                remedy=nearest_key(name, list(self.tasks)),
            )
        return self.tasks.index(name)

    def check(self, card: ModelCard, where: str) -> None:
        """Check that a world model's frames are such as the network was trained on.

        Raises:
            UserError: frame size, number of cameras or robots differ; the message says which.
        """
        if (self.height, self.width) != (card.height, card.width):
            sizes = f"{self.height}x{self.width}", f"{card.height}x{card.width}"
            raise UserError(f"reads frames of {sizes[0]}, the world model's have {sizes[1]}", where=where)
        if len(self.views) > card.views:
            raise UserError(
                f"reads {len(self.views)} views ({', '.join(self.views)}), the world model predicts {card.views}",
                where=where,
                remedy="train it with fewer episodes.views",
            )
        robots = set(card.actions.embodiments) if card.actions is not None else set()
        if robots and self.embodiments and not robots & set(self.embodiments):
            raise UserError(
                f"was trained on {', '.join(self.embodiments)}, the world model on {', '.join(sorted(robots))}",
                where=where,
            )

    def table(self) -> str:
        """The errors as a Markdown table."""
        head = ["| task | object to target, cm | hand to object, cm | held-out starts |", "|---|---|---|---|"]
        rows = []
        for task in self.tasks:
            if (e := self.errors.get(task)) is None:
                rows.append(f"| {task} | not measured | not measured | 0 |")
                continue
            pairs = (e.object_target_cm, e.object_target_p90_cm), (e.hand_object_cm, e.hand_object_p90_cm)
            cells = (f"{mean:.2f} (90 % below {p90:.2f})" for mean, p90 in pairs)
            rows.append(f"| {task} | {' | '.join(cells)} | {e.starts} |")
        return "\n".join([*head, *rows]) + "\n"
