"""The learner: trains the policy with DeepSpeed and hands out its weights, one actor per rank.

Ranks are plain actors and not a Ray Train worker group: an update begins when the loop says so, with references to
groups as its arguments, and a lost rank is one more lost worker to the loop, which brings all ranks back to the last
checkpoint together with the groups that were finished by then.

All ranks are given the same scored groups and divide them by arithmetic; gradients are averaged by DeepSpeed. What is
trained, on what, and against which auxiliary policies, is the objective's affair.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.alignment.records.group_files import load_group, save_group
from roboalign_ray.alignment.records.scored import GroupRecord, ScoredGroup
from roboalign_ray.alignment.update import UpdateResult, policy_update
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.foundation.optimisation import learning_rate_factor, set_learning_rate
from roboalign_ray.foundation.storage.files import packed_folder, unpack_folder
from roboalign_ray.foundation.weight_sync.manifest import Manifest
from roboalign_ray.foundation.weight_sync.packing import pack


class LearnerActor:
    """One rank. Call `join` on all ranks with rank 0's `address`, then everything else on all ranks alike.

    Args:
        world_model: folder of the pre-trained weights, where training starts.
        config: objective and optimizer.
        off_policy: what makes up for segments of older weights.
        travel: how weights travel.
        rank, ranks: of this actor, and how many there are.
        threads: torch threads.
        seed: of what is random on the ranks, so that two runs leave the same state.
    """

    def __init__(
        self,
        world_model: Path,
        config: AlignmentConfig,
        off_policy: OffPolicyConfig | None = None,
        travel: WeightsConfig | None = None,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        torch.set_num_threads(threads)
        self.seed = seed
        self.world_model, self.config, self.rank, self.ranks = world_model, config, rank, ranks
        self.objective = build_objective(config, off_policy)
        self.version, self.travel = 0, travel or WeightsConfig()
        self._buckets: list[Any] = []

    def beat(self) -> int:
        """A number that grows while work is done; may be asked for from another thread."""
        return self.policy.passes if "policy" in self.__dict__ else 0

    def address(self) -> str:
        """host:port where the ranks can meet, free at this moment."""
        host = "127.0.0.1" if self.ranks == 1 else _node_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{host}:{probe.getsockname()[1]}"

    def join(self, address: str) -> None:
        """Load the weights and meet the other ranks.

        Raises:
            UserError: the weights cannot be read.
        """
        from roboalign_ray.actors.deepspeed_policy import DeepSpeedPolicy

        model = self.objective.open_policy(self.world_model)
        self.policy = DeepSpeedPolicy(model, self.config, address, rank=self.rank, ranks=self.ranks)
        self.objective.begin(self.policy, self.world_model)
        torch.manual_seed(self.seed + self.rank)

    def update(self, *groups: ScoredGroup) -> UpdateResult:
        """Train on the groups; afterwards the weights have the next version.

        Raises:
            UserError: a rollout that cannot be trained on.
            FloatingPointError: the loss is not finite.
        """
        factor = learning_rate_factor(
            self.version,
            warmup=self.config.warmup_updates,
            total=self.config.updates,
            schedule="constant",
            floor=1.0,
        )
        rate = self.config.learning_rate * factor
        set_learning_rate(self.policy.optimizer, rate)
        result = policy_update(
            self.policy,
            groups,
            self.config,
            self.objective,
            rank=self.rank,
            ranks=self.ranks,
            version=self.version,
        )
        self.version += 1
        return replace(result, learning_rate=rate)

    def publish(self) -> tuple[int, Manifest | None]:
        """The version, and on the first rank what its buckets consist of; `take_buckets` hands them out."""
        with self.policy.whole_weights() as model:
            if self.rank:
                return self.version, None
            manifest, self._buckets = pack(self.objective.published(model), self.version, self.travel)
        return self.version, manifest

    def take_buckets(self) -> tuple[Any, ...]:
        """The buckets that `publish` packed, uint8 arrays, and last their number."""
        buckets, self._buckets = self._buckets, []
        return (*buckets, len(buckets))

    def save(self, folder: Path) -> None:
        """Write what rollouts are sampled with as a folder that a world model is opened from (the first rank does)."""
        with self.policy.whole_weights() as model:
            if not self.rank:
                self.objective.save(model, folder)

    def save_state(self, folder: Path) -> None:
        """Write all that the next update depends on, every rank its part; data alone, see `deepspeed_state`."""
        extra = {
            "version": self.version,
            "generator": torch.get_rng_state(),
            "objective": self.objective.state_dict(),
        }
        self.policy.save_state(folder, extra)

    def load_state(self, folder: Path) -> int:
        """Take up what `save_state` wrote; the version it had.

        Raises:
            StateError: it is missing, damaged, or of another job.
        """
        extra = self.policy.load_state(folder)
        torch.set_rng_state(extra["generator"])
        self.objective.load_state_dict(extra["objective"])
        self.version = int(extra["version"])
        return self.version

    def save_groups(self, folder: Path, *groups: ScoredGroup) -> None:
        """Write groups that wait for their update, numbered in this order."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, group in enumerate(groups):
            save_group(folder / f"{number:06d}.npz", group)

    def load_groups(self, folder: Path, count: int) -> tuple[Any, ...]:
        """What `save_groups` wrote, one by one, and last their numbers (`GroupRecord`) for the driver.

        Raises:
            UserError: one is missing or damaged.
        """
        groups = [load_group(folder / f"{number:06d}.npz") for number in range(count)]
        records: list[GroupRecord] = [group.record() for group in groups]
        return (*groups, records)

    def save_files(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Write files that another worker packed (`packed_folder`): a checkpoint has one writer."""
        unpack_folder(files, folder)

    def load_files(self, folder: Path) -> tuple[Mapping[str, bytes], int]:
        """What `save_files` wrote, and how many they are."""
        files = packed_folder(folder)
        return files, len(files)

    def close(self) -> None:
        """Free the engine."""
        self.policy.close()


def _node_address() -> str:
    """This node's address as the other nodes know it; a host's own name often resolves to itself only."""
    import ray.util

    return ray.util.get_node_ip_address()
