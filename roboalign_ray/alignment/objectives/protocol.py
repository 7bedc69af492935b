"""The interface of a post-training objective: scored groups in, losses of micro-batches out.

    open_policy ─► the model that is trained
    begin       ─► creates auxiliary policies (a frozen reference, an average of old weights)
    prepare     ─► one optimizer step: this rank's micro-batches          ┐
    loss        ─► scalar loss and metrics of one micro-batch             │ every update
    finish      ─► after the update's last step                           ┘

Learner, update loop, checkpoints and weight synchronisation use only this interface. A micro-batch is an opaque item:
only the objective makes and reads it. An objective owns its auxiliary policies; their changing state is in
`state_dict`, which checkpoints hold.

Contract, tested by `tests/contract/test_objectives.py`: losses and metrics add up to the step's over its micro-batches
and over ranks; every rank gets equally many micro-batches; the same arguments give the same step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig, JobConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig

Metrics = dict[str, Tensor]
Item = TypeVar("Item")


class PolicyModel(nn.Module, ABC):
    """A trained model of any world model. Any optimizer engine may wrap it."""

    @abstractmethod
    def inputs(self, item: Any, device: torch.device | str) -> tuple[Any, ...]:
        """Arguments of `forward` for an objective's item, tensors on the device."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """The weights that rollout workers need to sample from this policy: all weights, or only those of adapters."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model as a folder that `open_world_model` reads."""


class Policy(Protocol):
    """A policy and its optimizer, as objectives and the update use them.

    Attributes:
        device: device of the weights.
    """

    device: torch.device

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this micro-batch's share of the step's loss; `last` is true for the step's last."""
        ...

    def step(self) -> float:
        """Clip, update and zero the gradients. Return the gradient's norm before clipping."""
        ...


class LearnerPolicy(Policy, Protocol):
    """A `Policy` that a learner made; an objective's auxiliary policies are derived from it.

    Attributes:
        dtype: data type of the computation.
        passes: number of forward and backward passes so far, for heartbeats; auxiliary policies count theirs here too.
    """

    dtype: torch.dtype
    passes: int

    def whole_weights(self) -> AbstractContextManager[PolicyModel]:
        """The trained model with all its weights during the block. All ranks must call this."""
        ...


@dataclass(frozen=True)
class Share:
    """This rank's part of an update.

    Attributes:
        rank, ranks: rank of this process, and number of ranks.
        version: version of the policy's weights at the beginning of the update; None if unknown.
    """

    rank: int = 0
    ranks: int = 1
    version: int | None = None


@dataclass(frozen=True)
class OptimizerStep(Generic[Item]):
    """One optimizer step.

    Attributes:
        items: this rank's micro-batches, equally many on every rank, at least one.
        size: denominator of the step's means, over all ranks: number of tokens, frames or clips.
    """

    items: Sequence[Item]
    size: int


class Objective(ABC, Generic[Item]):
    """An objective; see the module's docstring for the order of calls.

    Args:
        config: the section `alignment`, for every objective.
        off_policy: correction for samples of older weights, if the objective supports one.

    Attributes:
        unit: what `OptimizerStep.size` counts, in the singular.
        trains: kind of world model that it trains; empty where `open_policy` alone can tell.
    """

    unit: str = "sample"
    trains: str = ""

    def __init__(self, config: AlignmentConfig, off_policy: OffPolicyConfig | None = None) -> None:
        self.config, self.off_policy = config, off_policy or OffPolicyConfig()

    def check(self, config: JobConfig) -> None:
        """Refuse a job that the objective cannot train, before anything heavy starts.

        Raises:
            UserError: the job cannot be trained.
        """

    @abstractmethod
    def open_policy(self, folder: Path) -> PolicyModel:
        """The model to train, float32, from the folder of the world model.

        Raises:
            UserError: the folder holds no such model.
        """

    def begin(self, policy: LearnerPolicy, folder: Path) -> None:
        """Create auxiliary policies, on the policy's device and in its precision.

        Args:
            policy: the trained policy, with the weights of `folder`.
            folder: folder of the world model that training starts from.
        """

    @abstractmethod
    def prepare(
        self,
        policy: Any,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[GroupAdvantages],
        share: Share,
    ) -> OptimizerStep[Item]:
        """This rank's micro-batches of one optimizer step. All steps of an update are prepared before the first one.

        Args:
            policy: the trained policy; called without gradient here.
            groups: groups of this step, the same on every rank.
            advantages: advantages of each group; at least one sample of one group is valid.
            share: share of this rank.

        Raises:
            UserError: a rollout cannot be trained on.
        """

    @abstractmethod
    def loss(self, policy: Any, item: Item, size: int) -> tuple[Tensor, Metrics]:
        """Scalar loss of one micro-batch, with gradient, and detached metrics.

        Args:
            size: size of the step.

        Returns:
            The loss and the metrics add up to the step's over all its micro-batches, but metrics whose names end in
            "_max" combine by maximum.
        """

    def finish(self, policy: Any, metrics: Mapping[str, float]) -> None:
        """Called on every rank after an update's last step; `metrics` are this rank's shares of the update's means."""

    def published(self, model: PolicyModel) -> Mapping[str, Tensor]:
        """The weights that rollout workers sample with; by default the policy's own."""
        return model.weights()

    def save(self, model: PolicyModel, folder: Path) -> None:
        """Write the policy whose weights are `published` as a folder that the world model is opened from.

        Held-out rewards are those of this policy, and a replay makes rollouts again with it.
        """
        model.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """State of the objective besides the policy and torch's own generator, as `write_state` accepts it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, after `begin`."""


def merge_metrics(parts: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """A step's metrics from those of its micro-batches or ranks: sums, and maxima if a name ends in "_max"."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            number = float(value)
            if name in merged:
                number = max(merged[name], number) if name.endswith("_max") else merged[name] + number
            merged[name] = number
    return merged
