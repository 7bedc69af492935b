"""A policy and its AdamW inside a DeepSpeed engine, for any ZeRO stage, on CPU and GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roboalign_ray.actors.deepspeed_state import load_engine, save_engine
from roboalign_ray.alignment.objectives.protocol import PolicyModel
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.foundation.optimisation import decayed_parameters


class DeepSpeedPolicy:
    """Implements `LearnerPolicy`, and `predict` for the items of the model's objective.

    Args:
        policy: float32 model; the DeepSpeed engine owns it afterwards.
        config: optimizer, ZeRO stage, precision.
        address: host:port where the ranks meet.

    Attributes:
        passes: number of forward and backward passes so far, for heartbeats.
    """

    def __init__(
        self, policy: PolicyModel, config: AlignmentConfig, address: str, *, rank: int, ranks: int
    ) -> None:
        deepspeed = _import_deepspeed(address, rank, ranks)
        self.model, self.ranks, self.stage = policy, ranks, config.zero_stage
        self.dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        parameters = decayed_parameters(policy, config.weight_decay)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=policy,
            optimizer=torch.optim.AdamW(parameters, config.learning_rate),
            config=engine_config(config),
        )
        self.device, self.passes = self.engine.device, 0
        self._gathered = deepspeed.zero.GatheredParameters

    def predict(self, item: Any) -> Any:
        """The model's forward pass on an item. `PolicyModel.inputs` must accept the item."""
        self.passes += 1
        return self.engine(*self.model.inputs(item, self.device))

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient; at the step's last micro-batch, add the gradients of all ranks."""
        self.passes += 1
        self.engine.set_gradient_accumulation_boundary(last)
        # The engine averages over ranks, but the loss is already this rank's share of the step's mean.
        self.engine.backward(loss * self.ranks)

    def step(self) -> float:
        """Clip, update and zero the gradients. Return the global gradient norm before clipping."""
        own = self._plain_norm()
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if own is None else own)

    def _plain_norm(self) -> Tensor | None:
        """The gradient norm. Without ZeRO and in float32, the engine stores none, and gradients are in `.grad`."""
        if self.stage or self.dtype != torch.float32:
            return None
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        )

    @contextmanager
    def whole_weights(self) -> Iterator[PolicyModel]:
        """The model with all its weights. With ZeRO 3, the block gathers them on all ranks."""
        gathered = self._gathered(list(self.model.parameters())) if self.stage == 3 else nullcontext()
        with gathered:
            yield self.model

    def save_state(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Write weights, optimizer state and this rank's `extra`. Every rank calls this. See `deepspeed_state`."""
        save_engine(self.engine, folder, extra)

    def load_state(self, folder: Path) -> dict[str, Any]:
        """Restore what `save_state` wrote. Return this rank's `extra`. Raises as `load_engine`."""
        return load_engine(self.engine, folder)

    def close(self) -> None:
        """Free the engine. The process group remains: DeepSpeed keeps references to it until the process ends."""
        self.engine.destroy()


def engine_config(config: AlignmentConfig) -> dict[str, Any]:
    """DeepSpeed's settings. The policy counts micro-batches itself, so DeepSpeed's own accumulation is 1."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip_norm,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own wants a compiler at run time
        "steps_per_print": 2**31,
    }


def _import_deepspeed(address: str, rank: int, ranks: int) -> Any:
    """Import DeepSpeed. It reads rank and world size from the environment; Ray gives every rank its own devices."""
    host, port = address.rsplit(":", 1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    import deepspeed.ops

    if on_cpu:
        # Its shared-memory collectives are compiled at first use (30 s; needs g++ and ninja). We use gloo instead.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
