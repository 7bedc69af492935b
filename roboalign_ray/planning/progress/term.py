"""The progress network as a planning cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from roboalign_ray.planning.costs import Predictions
from roboalign_ray.planning.progress.distances import progress_cost
from roboalign_ray.planning.progress.network import ProgressNetwork
from roboalign_ray.world_model.protocol import ModelCard


class ProgressTermConfig(BaseModel):
    """Settings of the cost "progress".

    Attributes:
        weights: folder that `roboalign agent train-cost` wrote.
        task: one that the network was trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(min_length=1)
    task: str = Field(min_length=1)


class ProgressTerm:
    """3 · object–target + hand–object in metres, mean over the predicted frames: arriving early is best.

    Args:
        network: trained on `task`.
        task: a name of its card.
        card: of the world model.

    Raises:
        UserError: on construction, where the network's card and the world model's differ, or the task is another one.
    """

    Config = ProgressTermConfig

    def __init__(self, network: ProgressNetwork, task: str, card: ModelCard) -> None:
        where = "progress cost"
        network.card.task(task, where)
        network.card.check(card, where)
        self.network, self.task = network, task

    @classmethod
    def open(cls, config: ProgressTermConfig, card: ModelCard) -> ProgressTerm:
        """From its folder.

        Raises:
            UserError: as `ProgressNetwork.load`, and as the constructor.
        """
        return cls(ProgressNetwork.load(Path(config.weights)), config.task, card)

    def costs(self, frames: np.ndarray) -> np.ndarray:
        """Cost of every frame, float64 [N], of frames uint8 [N, V, H, W, 3]."""
        return progress_cost(self.network.distances(frames, self.task))

    def __call__(self, predicted: Predictions) -> np.ndarray:
        """Float64 [R]."""
        frames = predicted.frames
        rows, horizon = frames.shape[:2]
        return (
            self.costs(frames.reshape(rows * horizon, *frames.shape[2:])).reshape(rows, horizon).mean(axis=1)
        )
