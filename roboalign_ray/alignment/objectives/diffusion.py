"""Objectives of a diffusion world model: DiffusionNFT and softmax-contrastive weights, on its own rollouts.

Both sample with the old policy, an average of the trained one. They and Flow-GRPO (`flow_objective`) are pulled to the
frozen base: with adapters that is the network without them. `alignment.objective` names one of the three.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.objectives.diffusion_batch import ClipBatch, clip_batches
from roboalign_ray.alignment.objectives.diffusion_nft import Predictions, nft_loss
from roboalign_ray.alignment.objectives.diffusion_policy import DiffusionPolicy, open_diffusion_policy
from roboalign_ray.alignment.objectives.old_policy import OldPolicy
from roboalign_ray.alignment.objectives.protocol import (
    LearnerPolicy,
    Metrics,
    Objective,
    OptimizerStep,
    PolicyModel,
    Share,
)
from roboalign_ray.alignment.objectives.softmax_contrastive import contrastive_loss, softmax_weights
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError


class DiffusionTrainable(LearnerPolicy, Protocol):
    """What a diffusion policy adds to `LearnerPolicy`."""

    def predict(self, item: ClipBatch) -> Tensor:
        """The trained policy's clean states, with gradient."""
        ...


Item = TypeVar("Item")


class DiffusionObjective(Objective[Item], Generic[Item]):
    """What all objectives of a diffusion world model have in common.

    Attributes:
        base: weights of the frozen base that are not the network's own; empty with adapters.
    """

    trains = "diffusion"
    base: dict[str, Tensor]

    def check(self, config: JobConfig) -> None:
        """Refuse ZeRO 3, which takes the network's weights apart: other policies could not run on it.

        Raises:
            UserError: it is set.
        """
        if config.alignment.zero_stage == 3:
            raise UserError(
                f"the objective '{self.config.objective}' runs one network with the weights of several policies; "
                "ZeRO 3 takes them apart",
                where="alignment.zero_stage",
                remedy="set it to 0, 1 or 2; adapters need little memory",
            )

    def open_policy(self, folder: Path) -> DiffusionPolicy:
        """As `open_diffusion_policy`."""
        return open_diffusion_policy(folder, self.config.diffusion.lora)

    def begin(self, policy: LearnerPolicy, folder: Path) -> None:
        """The base begins as the trained policy."""
        with policy.whole_weights() as model:
            assert isinstance(model, DiffusionPolicy)
            trained = {} if model.adapters is not None else model.weights()
            self.base = {name: value.detach().clone() for name, value in trained.items()}


class OldPolicyObjective(DiffusionObjective[ClipBatch]):
    """Objectives whose samples come from an average of the trained policy.

    Attributes:
        old: the policy that rollouts are sampled with; from `begin` on, as the next.
    """

    unit = "clip"
    old: OldPolicy

    def begin(self, policy: LearnerPolicy, folder: Path) -> None:
        """The old policy and the base begin as the trained one."""
        super().begin(policy, folder)
        with policy.whole_weights() as model:
            self.old = OldPolicy(model.weights(), self.config.diffusion.old_policy)

    def prepare(
        self,
        policy: DiffusionTrainable,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[GroupAdvantages],
        share: Share,
    ) -> OptimizerStep[ClipBatch]:
        """Every drawn clip of every valid sample is a row; old policy and base are asked once per micro-batch."""
        with policy.whole_weights() as model:
            assert isinstance(model, DiffusionPolicy)
            batches, count = clip_batches(
                groups,
                advantages,
                model.folder,
                self.config.diffusion,
                self._weigh,
                rank=share.rank,
                ranks=share.ranks,
            )
            items = [self._with_predictions(policy, model, batch) for batch in batches]
        return OptimizerStep(items, count)

    def _with_predictions(
        self, policy: DiffusionTrainable, model: DiffusionPolicy, batch: ClipBatch
    ) -> ClipBatch:
        policy.passes += 2
        old = model.clean_with(self.old.weights, batch, policy.device)
        return replace(batch, old=old, base=model.clean_with(self.base, batch, policy.device))

    def loss(self, policy: DiffusionTrainable, item: ClipBatch, size: int) -> tuple[Tensor, Metrics]:
        """Forward pass and the loss of the micro-batch's rows."""
        device = policy.device
        clips = Predictions(
            clean=item.clean.to(device),
            trained=policy.predict(item),
            old=item.old,
            base=item.base,
            time=item.time.to(device),
        )
        loss, metrics = self._loss(clips, item.weights.to(device), item.live.to(device), size)
        return loss, metrics | {name: torch.tensor(value) for name, value in item.figures.items()}

    @abstractmethod
    def _weigh(self, advantages: np.ndarray) -> np.ndarray:
        """What the loss takes for each of a clip's valid samples [K], from their advantages [K]."""

    @abstractmethod
    def _loss(self, clips: Predictions, weights: Tensor, live: Tensor, count: int) -> tuple[Tensor, Metrics]:
        """Loss and metrics of some rows."""

    def finish(self, policy: DiffusionTrainable, metrics: Mapping[str, float]) -> None:
        """Move the old policy, where the update took a step.

        Raises:
            UserError: as `OldPolicy.advance`.
        """
        if metrics:
            with policy.whole_weights() as model:
                self.old.advance(model.weights())

    def published(self, model: PolicyModel) -> Mapping[str, Tensor]:
        """The old policy's: DiffusionNFT's loss is about samples of that one. With adapters, only those."""
        return self.old.weights

    def save(self, model: PolicyModel, folder: Path) -> None:
        """The old policy's, too."""
        assert isinstance(model, DiffusionPolicy)
        model.save_with(self.old.weights, folder)

    def state_dict(self) -> dict[str, Any]:
        """The old policy and its place in the schedule. Noise follows from the rollouts' seeds."""
        return {"old": self.old.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.old.load_state_dict(state["old"])


class DiffusionNftObjective(OldPolicyObjective):
    """DiffusionNFT in clean clips; see `diffusion_nft`."""

    def _weigh(self, advantages: np.ndarray) -> np.ndarray:
        return advantages

    def _loss(self, clips: Predictions, weights: Tensor, live: Tensor, count: int) -> tuple[Tensor, Metrics]:
        settings = self.config.nft
        return nft_loss(
            clips,
            weights,
            live,
            beta=settings.beta,
            bound=settings.advantage_bound,
            scale=settings.loss_scale,
            regulariser=self.config.diffusion.regulariser,
            count=count,
        )


class SoftmaxContrastiveObjective(OldPolicyObjective):
    """A denoising loss weighted by a softmax of advantages; see `softmax_contrastive`."""

    def _weigh(self, advantages: np.ndarray) -> np.ndarray:
        return softmax_weights(advantages, self.config.contrastive.beta)

    def _loss(self, clips: Predictions, weights: Tensor, live: Tensor, count: int) -> tuple[Tensor, Metrics]:
        return contrastive_loss(
            clips, weights, live, regulariser=self.config.diffusion.regulariser, count=count
        )
