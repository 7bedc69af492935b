"""The learner: trains the policy with DeepSpeed and hands out its weights, one actor per rank.

All ranks are given the same scored groups and divide them by arithmetic; gradients are averaged by DeepSpeed. The
frozen reference is a second copy of the pre-trained weights on every rank.
"""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.alignment.batch import MicroBatch
from roboalign_ray.alignment.grpo import GrpoObjective
from roboalign_ray.alignment.policy import TokenPolicy, predict_batch
from roboalign_ray.alignment.scored import ScoredGroup
from roboalign_ray.alignment.update import UpdateResult, policy_update
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.foundation.optimisation import learning_rate_factor, set_learning_rate
from roboalign_ray.world_model.transformer import load_pretrained, save_pretrained

Weights = dict[str, np.ndarray]


class LearnerActor:
    """One rank. Call `join` on all ranks with rank 0's `address`, then everything else on all ranks alike.

    Args:
        world_model: folder of the pre-trained weights: where training starts, and the frozen reference.
        config: objective and optimizer.
        rank, ranks: of this actor, and how many there are.
        threads: torch threads.
    """

    def __init__(
        self, world_model: Path, config: AlignmentConfig, rank: int = 0, ranks: int = 1, threads: int = 1
    ) -> None:
        torch.set_num_threads(threads)
        self.world_model, self.config, self.rank, self.ranks = world_model, config, rank, ranks
        self.version = 0

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
        from actors.deepspeed_policy import DeepSpeedPolicy

        model, layout = load_pretrained(self.world_model)
        frozen, _ = load_pretrained(self.world_model)
        self.policy = DeepSpeedPolicy(
            TokenPolicy(model, layout), self.config, address, rank=self.rank, ranks=self.ranks
        )
        # In the policy's own precision: the first KL is then zero, not the rounding error between two types.
        self.reference = TokenPolicy(frozen.to(self.policy.dtype), layout).to(self.policy.device).eval()

    def update(self, *batches: list[ScoredGroup]) -> UpdateResult:
        """Train on all groups of all batches; afterwards the weights have the next version.

        Raises:
            UserError: a rollout that cannot be trained on.
            FloatingPointError: the loss is not finite.
        """
        groups = [group for batch in batches for group in batch]
        factor = learning_rate_factor(
            self.version,
            warmup=self.config.warmup_updates,
            total=self.config.updates,
            schedule="constant",
            floor=1.0,
        )
        set_learning_rate(self.policy.optimizer, self.config.learning_rate * factor)
        result = policy_update(
            self.policy,
            self._predict_reference,
            groups,
            self.config,
            GrpoObjective(self.config),
            rank=self.rank,
            ranks=self.ranks,
        )
        self.version += 1
        return result

    def publish(self) -> tuple[int, Weights | None]:
        """Version and weights, float32 arrays by name; None on all ranks but the first."""
        with self.policy.whole_weights() as model:
            if self.rank:
                return self.version, None
            return self.version, {
                name: value.detach().float().cpu().numpy().copy()
                for name, value in model.state_dict().items()
            }

    def save(self, folder: Path) -> None:
        """Write the model as a plain Hugging Face directory (the first rank does)."""
        with self.policy.whole_weights() as model:
            if not self.rank:
                save_pretrained(model, self.policy.layout, folder)
                ActionBinner.load(self.world_model).save(folder)

    def save_state(self, folder: Path) -> None:
        """Write all that the next update depends on, every rank its part."""
        self.policy.engine.save_checkpoint(str(folder), tag="learner", client_state={"version": self.version})

    def load_state(self, folder: Path) -> int:
        """Take up what `save_state` wrote; the version it had."""
        _, client = self.policy.engine.load_checkpoint(str(folder), tag="learner")
        self.version = int(client["version"])
        return self.version

    def close(self) -> None:
        """Free the engine."""
        self.policy.close()

    def _predict_reference(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return predict_batch(self.reference, batch, self.policy.device)


def _node_address() -> str:
    """This node's address as the other nodes know it; a host's own name often resolves to itself only."""
    import ray.util

    return ray.util.get_node_ip_address()
