"""An objective without tokens: a linear policy on vectors, with everything that an objective may own.

    mean action  m = W s + b;   state s' = s + NOISE * draw of the objective's own generator
    loss = sum_i [ A_i |a_i - m_i|^2 / 2 + beta |m_i - old_i|^2 / 2 ] / N

N counts the valid samples of the step; `old` is an average of the policy's weights that moves at the end of an update.
The first term is -A log p of a Gaussian with unit deviation, without its constant. `gradient` is the closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.objectives.protocol import Metrics, Objective, OptimizerStep, PolicyModel, Share
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.storage.state_files import read_state, write_state
from roboalign_ray.rewards.protocol import Scored

STATES, ACTIONS, NOISE, KEPT = 3, 2, 0.1, 0.7
WEIGHTS = "toy.safetensors"


@dataclass(frozen=True)
class ToyRollout:
    """States float32 [G, S] and actions float32 [G, A] of one prompt's samples."""

    prompt_id: str
    states: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class ToyItem:
    """Rows of one micro-batch; `live` float32 [B] is 0 in one that only keeps the ranks in step."""

    states: Tensor
    actions: Tensor
    advantages: Tensor
    live: Tensor


class ToyModel(PolicyModel):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(STATES, ACTIONS)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states)

    def inputs(self, item: ToyItem, device: torch.device | str) -> tuple[Tensor]:
        return (item.states.to(device),)

    def weights(self) -> Mapping[str, Tensor]:
        return self.linear.state_dict()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_state(folder / WEIGHTS, self.linear.state_dict())


class ToyObjective(Objective[ToyItem]):
    """See the module's head."""

    def open_policy(self, folder: Path) -> ToyModel:
        model = ToyModel()
        model.linear.load_state_dict(read_state(folder / WEIGHTS))
        return model

    def begin(self, policy: Any, folder: Path) -> None:
        self.old = self.open_policy(folder).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(7)

    def prepare(
        self,
        policy: Any,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[GroupAdvantages],
        share: Share,
    ) -> OptimizerStep[ToyItem]:
        rows = ToyItem(*map(torch.cat, zip(*map(self._rows, groups, advantages), strict=True)))
        size, own = len(rows.live), self.config.micro_batch_tokens
        mine = [range(rank, size, share.ranks) for rank in range(share.ranks)]
        count = max(-(-len(one) // own) for one in mine)
        items = []
        for first in range(0, count * own, own):
            chosen = list(mine[share.rank][first : first + own])
            live = 1.0 if chosen else 0.0
            chosen = chosen or [0]
            items.append(
                ToyItem(
                    rows.states[chosen],
                    rows.actions[chosen],
                    rows.advantages[chosen],
                    torch.full((len(chosen),), live),
                )
            )
        return OptimizerStep(items, size)

    def _rows(self, group: Any, advantages: GroupAdvantages) -> tuple[Tensor, ...]:
        valid = np.flatnonzero(advantages.valid)
        states = torch.from_numpy(group.rollout.states[valid])
        noise = torch.randn(states.shape, generator=self.generator)
        return (
            states + NOISE * noise,
            torch.from_numpy(group.rollout.actions[valid]),
            torch.from_numpy(advantages.values[valid].astype(np.float32)),
            torch.ones(len(valid)),
        )

    def loss(self, policy: Any, item: ToyItem, size: int) -> tuple[Tensor, Metrics]:
        mean = policy.predict(item)
        missed = (item.actions - mean).square().sum(1) / 2
        moved = (mean - self.old(item.states)).square().sum(1) / 2
        terms = item.advantages * missed + self.config.kl_coefficient * moved
        loss = (item.live * terms).sum() / size
        deviation = (item.live * moved.detach()).sum() / size
        return loss, {"loss": loss.detach(), "deviation": deviation, "deviation_max": moved.detach().max()}

    def finish(self, policy: Any, metrics: Mapping[str, float]) -> None:
        with policy.whole_weights() as model, torch.no_grad():
            for old, new in zip(self.old.parameters(), model.parameters(), strict=True):
                old.lerp_(new.float(), 1 - KEPT)

    def published(self, model: PolicyModel) -> Mapping[str, Tensor]:
        return self.old.weights()

    def save(self, model: PolicyModel, folder: Path) -> None:
        self.old.save(folder)

    def state_dict(self) -> dict[str, Any]:
        return {"old": dict(self.old.weights()), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.old.linear.load_state_dict(state["old"])
        self.generator.set_state(state["generator"])


class ConstantSlope(ToyObjective):
    """A loss whose gradient by every weight is 1 at each step: AdamW then moves each by its learning rate."""

    def loss(self, policy: Any, item: ToyItem, size: int) -> tuple[Tensor, Metrics]:
        ones = ToyItem(torch.ones(1, STATES), item.actions, item.advantages, item.live)
        loss = policy.predict(ones).sum()
        return loss, {"loss": loss.detach()}


def toy_folder(folder: Path) -> Path:
    """A pre-trained toy policy."""
    torch.manual_seed(3)
    ToyModel().save(folder)
    return folder


def toy_group(seed: int, rewards: Sequence[float | None]) -> ScoredGroup:
    """Random states and actions; None is a sample that could not be scored."""
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(len(rewards), STATES)).astype(np.float32)
    actions = generator.normal(size=(len(rewards), ACTIONS)).astype(np.float32)
    scores = tuple(Failed("lost") if reward is None else Scored(reward) for reward in rewards)
    return ScoredGroup(ToyRollout(f"toy{seed}", states, actions), scores)  # type: ignore[arg-type]


def gradient(
    weight: np.ndarray,
    bias: np.ndarray,
    old: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    beta: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Of the loss by W [A, S] and b [A], in closed form; `rows` are states (with noise), actions and advantages."""
    states, actions, advantages = (values.astype(np.float64) for values in rows)
    mean, before = states @ weight.T + bias, states @ old[0].T + old[1]
    slope = (advantages[:, None] * (mean - actions) + beta * (mean - before)) / len(states)
    return slope.T @ states, slope.sum(0)
