"""What an objective of post-training is: scored groups in, losses of micro-batches out.

    open_policy ─► the model that is trained
    begin       ─► auxiliary policies in place (a frozen reference, an average of old weights)
    prepare     ─► one optimizer step: this rank's micro-batches          ┐
    loss        ─► scalar loss and metrics of one micro-batch             │ every update
    finish      ─► after the update's last step                           ┘

Learner, update loop, checkpoints and weight synchronisation know no more than this. A micro-batch is an opaque item:
the objective makes it, and it alone reads it. An objective owns its auxiliary policies: what of them changes is in
`state_dict`, which checkpoints hold.

Contract, held by `tests/contract/test_objectives.py`: losses and metrics add up to the step's over its micro-batches
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
    """A model that is trained, whatever world model it belongs to. Any optimizer engine may wrap it."""

    @abstractmethod
    def inputs(self, item: Any, device: torch.device | str) -> tuple[Any, ...]:
        """Arguments of `forward` for what an objective calls the policy with, tensors on the device."""

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """What rollout workers need to sample from this policy: all weights, or those of adapters alone."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write it as a folder that the world model is opened from."""


class Policy(Protocol):
    """A policy and its optimizer, seen from an objective and from the update.

    Attributes:
        device: of the weights.
    """

    device: torch.device

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this micro-batch's share of the step's loss; `last` is true for the step's last."""
        ...

    def step(self) -> float:
        """Clip, update, zero the gradients; the gradient's norm before clipping."""
        ...


class LearnerPolicy(Policy, Protocol):
    """A `Policy` that a learner made: what an objective's auxiliary policies are derived from.

    Attributes:
        dtype: that the weights compute in.
        passes: forward and backward passes so far, a sign of life: auxiliary policies count theirs here too.
    """

    dtype: torch.dtype
    passes: int

    def whole_weights(self) -> AbstractContextManager[PolicyModel]:
        """The trained model with all its weights in place, for the block; called on all ranks alike."""
        ...


@dataclass(frozen=True)
class Share:
    """Which part of an update this rank does.

    Attributes:
        rank, ranks: of this process, and how many there are.
        version: of the policy's weights at the update's beginning; None where it is not known.
    """

    rank: int = 0
    ranks: int = 1
    version: int | None = None


@dataclass(frozen=True)
class OptimizerStep(Generic[Item]):
    """One optimizer step.

    Attributes:
        items: this rank's micro-batches, equally many on every rank, at least one.
        size: what the step's means are divided by, over all ranks: tokens, frames, clips.
    """

    items: Sequence[Item]
    size: int


class Objective(ABC, Generic[Item]):
    """An objective; see the module's head for the order of calls.

    Args:
        config: what `alignment` says, for every objective.
        off_policy: what makes up for samples of older weights, where the objective can.

    Attributes:
        unit: what `OptimizerStep.size` counts, in the singular.
    """

    unit: str = "sample"

    def __init__(self, config: AlignmentConfig, off_policy: OffPolicyConfig | None = None) -> None:
        self.config, self.off_policy = config, off_policy or OffPolicyConfig()

    def check(self, config: JobConfig) -> None:
        """Refuse a job that cannot be trained with, before anything heavy starts.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def open_policy(self, folder: Path) -> PolicyModel:
        """The model to train, float32, from the folder of the world model.

        Raises:
            UserError: the folder holds no such model.
        """

    def begin(self, policy: LearnerPolicy, folder: Path) -> None:
        """Put auxiliary policies in place, on the policy's device and in its precision.

        Args:
            policy: to train, with the weights of `folder`.
            folder: of the world model that training starts from.
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
            policy: to train; called without gradient here.
            groups: of this step, the same on every rank.
            advantages: of each; at least one sample of one group is valid.
            share: of this rank.

        Raises:
            UserError: a rollout that cannot be trained on.
        """

    @abstractmethod
    def loss(self, policy: Any, item: Item, size: int) -> tuple[Tensor, Metrics]:
        """Scalar loss of one micro-batch, with gradient, and detached metrics.

        Args:
            size: of the step.

        Returns:
            The loss and the metrics add up to the step's over all its micro-batches, but metrics whose names end in
            "_max" combine by maximum.
        """

    def finish(self, policy: Any, metrics: Mapping[str, float]) -> None:
        """Called on every rank after an update's last step; `metrics` are this rank's shares of the update's means."""

    def published(self, model: PolicyModel) -> Mapping[str, Tensor]:
        """The weights that rollout workers sample with: the policy's own, by default."""
        return model.weights()

    def save(self, model: PolicyModel, folder: Path) -> None:
        """Write the policy whose weights are `published` as a folder that the world model is opened from.

        Held-out rewards are those of this policy, and a replay makes rollouts again with it.
        """
        model.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """What the next update depends on besides the policy and torch's own generator, as `write_state` takes it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave, after `begin`."""


def merge_metrics(parts: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """Metrics of a step from those of its micro-batches or ranks: sums, and maxima where a name ends in "_max"."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            number = float(value)
            if name in merged:
                number = max(merged[name], number) if name.endswith("_max") else merged[name] + number
            merged[name] = number
    return merged
