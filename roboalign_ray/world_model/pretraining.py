"""One pre-training step of the token world model: tokenize, assemble, predict dynamics tokens. Knows nothing of Ray."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config import PretrainingConfig
from roboalign_ray.foundation.optimisation import (
    decayed_parameters,
    learning_rate_factor,
    set_learning_rate,
    weight_average,
)
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.tokenizer.training import to_unit_frames
from roboalign_ray.world_model.layout import SequenceLayout
from roboalign_ray.world_model.transformer import slot_logits

_COSINE_FLOOR = 0.1


@torch.no_grad()
def tokenize_windows(
    tokenizer: DualBranchTokenizer,
    layout: SequenceLayout,
    context: np.ndarray,
    frames: np.ndarray,
    actions: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> Tensor:
    """Windows to id sequences.

    Args:
        context: uint8 [B, H, W, 3].
        frames: uint8 [B, n, H, W, 3].
        actions: bins int64 [B, n, A]; the last frame's are not needed and left out.

    Returns:
        ids int64 [B, C + n*D + (n-1)*A].
    """
    device_type = torch.device(device).type
    with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
        context_codes = tokenizer.encode_context(to_unit_frames(context, device))
        codes = tokenizer.encode_dynamics(to_unit_frames(frames, device), context_codes)
    ids = layout.assemble(context_codes.cpu().numpy(), codes.cpu().numpy(), actions[:, :-1])
    return torch.from_numpy(ids).to(device)


class SlotPredictor(nn.Module):
    """The model with `slot_logits` as its forward pass, so that a distributed wrapper sees it."""

    def __init__(self, model: nn.Module, layout: SequenceLayout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, ids: Tensor, frames: int) -> Tensor:
        """ids [B, L] to logits [B, (frames - 1) * D, codes]."""
        return slot_logits(self.model, ids, self.layout, frames)


class WorldModelTrainer:
    """Holds model, optimizer and weight average; `step` takes one batch of windows.

    Args:
        predictor: `SlotPredictor`, or its distributed wrapper.
        tokenizer: frozen, in evaluation mode.
    """

    def __init__(
        self,
        predictor: nn.Module,
        tokenizer: DualBranchTokenizer,
        layout: SequenceLayout,
        config: PretrainingConfig,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.predictor, self.tokenizer, self.layout, self.config = predictor, tokenizer, layout, config
        self.device = device
        self.plain = cast(SlotPredictor, getattr(predictor, "module", predictor)).model
        self.optimizer = torch.optim.AdamW(
            decayed_parameters(predictor, config.weight_decay), config.learning_rate, betas=(0.9, 0.95)
        )
        self.average = weight_average(self.plain, config.ema_decay)
        self.steps_done = 0

    def step(self, context: np.ndarray, frames: np.ndarray, actions: np.ndarray) -> dict[str, float]:
        """One optimizer step on windows (shapes as in `tokenize_windows`); loss in nats a token."""
        config = self.config
        factor = learning_rate_factor(
            self.steps_done,
            warmup=config.warmup_steps,
            total=config.steps,
            schedule=config.schedule,
            floor=_COSINE_FLOOR,
        )
        set_learning_rate(self.optimizer, config.learning_rate * factor)
        self.predictor.train()
        ids = tokenize_windows(
            self.tokenizer,
            self.layout,
            context,
            frames,
            actions,
            device=self.device,
            precision=config.precision,
        )
        loss, accuracy = self.loss(ids, frames.shape[1])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.predictor.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.plain)
        self.steps_done += 1
        return {
            "loss": float(loss.detach()),
            "accuracy": float(accuracy),
            "grad_norm": float(norm),
            "learning_rate": config.learning_rate * factor,
        }

    def loss(self, ids: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over dyn_1 … dyn_{frames-1} within the dynamics vocabulary, and top-1 accuracy."""
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits = self.predictor(ids, frames)
        targets = ids[:, torch.from_numpy(self.layout.predicted(frames)).to(ids.device)]
        logits = logits.float().flatten(0, 1)
        targets = targets.flatten() - self.layout.dynamics_range[0]
        return F.cross_entropy(logits, targets), (logits.detach().argmax(-1) == targets).float().mean()

    def result(self) -> nn.Module:
        """The model to keep: the weight average where there is one, in evaluation mode."""
        if self.average is None or self.steps_done == 0:
            return self.plain.eval()
        return self.average.module.eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave."""
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps_done = state["steps_done"]
