"""The learner: trains the policy with DeepSpeed and publishes its weights. One actor per rank.

Ranks are plain actors and not a Ray Train worker group, because the loop starts each update with references to groups
as arguments. If a rank is lost, the loop restores all ranks from the last checkpoint, with the finished groups of that
time.

All ranks get the same scored groups and compute their shares from their rank; DeepSpeed averages the gradients. The
objective determines the policy, the loss and the auxiliary policies.
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
        world_model: folder of the pre-trained weights that training starts from.
        config: objective and optimizer.
        off_policy: correction for segments of older weights.
        travel: transfer settings of weights.
        rank, ranks: rank of this actor, and number of ranks.
        threads: torch threads.
        seed: seed of the ranks' random numbers, so that two runs leave the same state.
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
        """A number that grows while work is done. Called from another thread."""
        return self.policy.passes if "policy" in self.__dict__ else 0

    def address(self) -> str:
        """host:port where the ranks can meet; the port is free now."""
        host = "127.0.0.1" if self.ranks == 1 else _node_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{host}:{probe.getsockname()[1]}"

    def join(self, address: str) -> None:
        """Load the weights and connect to the other ranks.

        Raises:
            UserError: the weights cannot be read.
        """
        from roboalign_ray.actors.deepspeed_policy import DeepSpeedPolicy

        model = self.objective.open_policy(self.world_model)
        self.policy = DeepSpeedPolicy(model, self.config, address, rank=self.rank, ranks=self.ranks)
        self.objective.begin(self.policy, self.world_model)
        torch.manual_seed(self.seed + self.rank)

    def update(self, *groups: ScoredGroup) -> UpdateResult:
        """Train on the groups; afterwards the weights have the next version number.

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
        """The version, and on the first rank the manifest of its buckets, which `take_buckets` returns."""
        with self.policy.whole_weights() as model:
            if self.rank:
                return self.version, None
            manifest, self._buckets = pack(self.objective.published(model), self.version, self.travel)
        return self.version, manifest

    def take_buckets(self) -> tuple[Any, ...]:
        """The buckets that `publish` packed (uint8 arrays), and as last value their number."""
        buckets, self._buckets = self._buckets, []
        return (*buckets, len(buckets))

    def save(self, folder: Path) -> None:
        """Write the weights that rollouts are sampled with as a world model folder. Only the first rank writes."""
        with self.policy.whole_weights() as model:
            if not self.rank:
                self.objective.save(model, folder)

    def save_state(self, folder: Path) -> None:
        """Write all that the next update depends on; every rank writes its part. Data only, see `deepspeed_state`."""
        extra = {
            "version": self.version,
            "generator": torch.get_rng_state(),
            "objective": self.objective.state_dict(),
        }
        self.policy.save_state(folder, extra)

    def load_state(self, folder: Path) -> int:
        """Restore what `save_state` wrote. Return its version.

        Raises:
            StateError: the state is missing, damaged, or of another job.
        """
        extra = self.policy.load_state(folder)
        torch.set_rng_state(extra["generator"])
        self.objective.load_state_dict(extra["objective"])
        self.version = int(extra["version"])
        return self.version

    def save_groups(self, folder: Path, *groups: ScoredGroup) -> None:
        """Write groups that wait for their update, numbered in the given order."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, group in enumerate(groups):
            save_group(folder / f"{number:06d}.npz", group)

    def load_groups(self, folder: Path, count: int) -> tuple[Any, ...]:
        """The groups that `save_groups` wrote, one by one, and as last value their records for the driver.

        Raises:
            UserError: one is missing or damaged.
        """
        groups = [load_group(folder / f"{number:06d}.npz") for number in range(count)]
        records: list[GroupRecord] = [group.record() for group in groups]
        return (*groups, records)

    def save_files(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Write files that another worker packed with `packed_folder`, so that a checkpoint has one writer."""
        unpack_folder(files, folder)

    def load_files(self, folder: Path) -> tuple[Mapping[str, bytes], int]:
        """The files that `save_files` wrote, and their number."""
        files = packed_folder(folder)
        return files, len(files)

    def close(self) -> None:
        """Free the engine."""
        self.policy.close()


def _node_address() -> str:
    """This node's address that other nodes can reach; the host name often resolves to loopback only."""
    import ray.util

    return ray.util.get_node_ip_address()
