"""Flow-GRPO as an objective: the learner's side of `flow_grpo` and `flow_chain`.

Rollouts are sampled with the trained policy's weights, as in GRPO. To make their states again, the objective keeps the
weights that the last updates began with; a rollout names the version that generated each of its segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.objectives.diffusion import DiffusionObjective, DiffusionTrainable
from roboalign_ray.alignment.objectives.diffusion_batch import ClipBatch, clip_batches
from roboalign_ray.alignment.objectives.diffusion_nft import Predictions
from roboalign_ray.alignment.objectives.diffusion_policy import DiffusionPolicy
from roboalign_ray.alignment.objectives.flow_chain import (
    ChainStep,
    first_noise,
    made_again,
    sampling_of,
    share_apart,
)
from roboalign_ray.alignment.objectives.flow_grpo import flow_grpo_loss
from roboalign_ray.alignment.objectives.protocol import Metrics, OptimizerStep, Share
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig, JobConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.rollout import Sampling


class SamplingPolicies:
    """Weights of the policies that sampled the groups that may still come, by version.

    An update without a step changes no weights, and its version is not kept. So the weights of a missing version are
    those of the next kept one.

    Args:
        most: versions that are kept.

    Attributes:
        weights: by version.
        dropped: newest version that is gone; -1 for none.
    """

    def __init__(self, most: int) -> None:
        self.most, self.dropped = most, -1
        self.weights: dict[int, dict[str, Tensor]] = {}

    def keep(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of a version, unless they are here, and drop the oldest beyond `most`."""
        if version in self.weights:
            return
        self.weights[version] = {name: value.detach().float().clone() for name, value in weights.items()}
        while len(self.weights) > self.most:
            self.dropped = min(self.weights)
            del self.weights[self.dropped]

    def of(self, version: int) -> Mapping[str, Tensor]:
        """The weights of a version.

        Raises:
            UserError: they are gone, or not here yet.
        """
        later = [kept for kept in self.weights if kept >= version]
        if version <= self.dropped or not later:
            raise UserError(
                f"a rollout of weights {version}; the weights {sorted(self.weights)} are kept",
                where="alignment.flow_grpo.policies",
                remedy="set it above asynchrony.staleness",
            )
        return self.weights[min(later)]

    def state_dict(self) -> dict[str, Any]:
        """Weights by version, and what is gone."""
        kept = {str(version): weights for version, weights in self.weights.items()}
        return {"weights": kept, "dropped": self.dropped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.weights, self.dropped = {}, int(state["dropped"])
        for version, weights in state["weights"].items():
            self.weights[int(version)] = {name: value.clone() for name, value in weights.items()}


class FlowGrpoObjective(DiffusionObjective[ChainStep]):
    """GRPO on the steps of a stochastic sampler; see `flow_grpo`.

    Attributes:
        sampled: weights that rollouts were sampled with.
    """

    unit = "step"

    def __init__(self, config: AlignmentConfig, off_policy: OffPolicyConfig | None = None) -> None:
        super().__init__(config, off_policy)
        self.sampled = SamplingPolicies(config.flow_grpo.policies)

    def check(self, config: JobConfig) -> None:
        """Refuse sampling without likelihoods, and more staleness than policies are kept for.

        Raises:
            UserError: the job has one of them; or as `DiffusionObjective.check`.
        """
        super().check(config)
        sampling, where = config.rollout.diffusion, "rollout.diffusion."
        name = f"the objective '{self.config.objective}'"
        if not sampling.fresh_noise:
            message = f"{name} needs steps with noise: it learns from their likelihoods"
            raise UserError(message, where=where + "fresh_noise", remedy="set it to 0.7, as published")
        if sampling.steps is None or sampling.steps < 2:
            message = f"{name} needs at least two denoising steps: the last one adds no noise"
            raise UserError(message, where=where + "steps", remedy="set it to 2 or more")
        for other in ("action_noise", "history_noise"):
            if getattr(sampling, other):
                message = f"{name} takes the likelihood of samples without it; fresh_noise makes them differ"
                raise UserError(message, where=where + other, remedy="set it to 0")
        if config.asynchrony.staleness >= self.config.flow_grpo.policies:
            raise UserError(
                f"with a staleness of {config.asynchrony.staleness}, {name} must keep more policies",
                where="alignment.flow_grpo.policies",
                remedy=f"set it to {config.asynchrony.staleness + 1} or more",
            )

    def prepare(
        self,
        policy: DiffusionTrainable,
        groups: Sequence[ScoredGroup],
        advantages: Sequence[GroupAdvantages],
        share: Share,
    ) -> OptimizerStep[ChainStep]:
        """Every drawn clip of every valid sample goes through its steps again; a micro-batch is one step of some.

        Raises:
            UserError: as `sampling_of` and `SamplingPolicies.of`.
        """
        sampling = sampling_of(groups)
        versions = sorted({version for group in groups for version in group.rollout.versions})
        with policy.whole_weights() as model:
            assert isinstance(model, DiffusionPolicy)
            self.sampled.keep(versions[-1] if share.version is None else share.version, model.weights())
            batches, rows = clip_batches(
                groups,
                advantages,
                model.folder,
                self.config.diffusion,
                lambda values: values,
                draw=first_noise,
                rank=share.rank,
                ranks=share.ranks,
            )
            again = [self._again(policy, model, batch, sampling, versions, rows) for batch in batches]
        return OptimizerStep([step for steps in again for step in steps], rows * (sampling.steps - 1))

    def _again(
        self,
        policy: DiffusionTrainable,
        model: DiffusionPolicy,
        batch: ClipBatch,
        sampling: Sampling,
        versions: Sequence[int],
        rows: int,
    ) -> list[ChainStep]:
        """A batch's steps, with its figures in the first.

        Args:
            versions: of all groups, so that every rank asks for as many predictions.
            rows: of the whole step.
        """

        def old(clips: ClipBatch) -> Tensor:
            policy.passes += len(versions)
            found = {v: model.clean_with(self.sampled.of(v), clips, policy.device) for v in versions}
            return torch.stack([found[origin.version][row] for row, origin in enumerate(clips.origins)])

        def base(clips: ClipBatch) -> Tensor:
            policy.passes += 1
            return model.clean_with(self.base, clips, policy.device)

        (first, *others), clean = made_again(batch, sampling, old, base)
        apart = share_apart(clean, batch, model.folder.noise.residual_scale) / rows
        figures = batch.figures | {"resampled_apart": apart}
        return [replace(first, clips=replace(first.clips, figures=figures)), *others]

    def loss(self, policy: DiffusionTrainable, item: ChainStep, size: int) -> tuple[Tensor, Metrics]:
        """Forward pass and the loss of the micro-batch's rows."""
        device, batch = policy.device, item.clips
        clips = Predictions(
            clean=batch.clean.to(device),
            trained=policy.predict(batch),
            old=batch.old.to(device),
            base=batch.base.to(device),
            time=batch.time.to(device),
        )
        loss, metrics = flow_grpo_loss(
            clips,
            item.fresh.to(device),
            item.slope,
            batch.weights.to(device),
            batch.live.to(device),
            clip=self.config.flow_grpo.clip,
            bound=self.config.flow_grpo.advantage_bound,
            kl_coefficient=self.config.kl_coefficient,
            count=size,
        )
        return loss, metrics | {name: torch.tensor(value) for name, value in batch.figures.items()}

    def state_dict(self) -> dict[str, Any]:
        """Weights that rollouts were sampled with. Noise follows from the rollouts' seeds."""
        return {"sampled": self.sampled.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.sampled.load_state_dict(state["sampled"])
