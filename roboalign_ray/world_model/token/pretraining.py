"""One pre-training step of the token world model: tokenize, assemble, predict dynamics tokens. Independent of Ray."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config import PretrainingConfig
from roboalign_ray.foundation.optimisation import AveragedTrainer, decayed_parameters
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.tokenizer.training import to_unit_frames
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import slot_logits

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
    """Convert windows to id sequences.

    Args:
        context: uint8 [B, H, W, 3].
        frames: uint8 [B, n, H, W, 3].
        actions: bins int64 [B, n, A]; the last frame's are ignored.

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


class WorldModelTrainer(AveragedTrainer[nn.Module]):
    """Sums loss and number of tokens; `step` processes one batch of windows. Holds the predictor's model.

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
        optimizer = torch.optim.AdamW(
            decayed_parameters(predictor, config.weight_decay), config.learning_rate, betas=(0.9, 0.95)
        )
        plain = cast(SlotPredictor, getattr(predictor, "module", predictor)).model
        super().__init__(predictor, plain, optimizer, ema_decay=config.ema_decay)
        self.tokenizer, self.layout, self.config, self.device = tokenizer, layout, config, device

    def step(self, context: np.ndarray, frames: np.ndarray, actions: np.ndarray) -> dict[str, float]:
        """One optimizer step on windows (shapes as in `tokenize_windows`); loss in nats a token."""
        config = self.config
        rate = self._begin(
            config.learning_rate,
            warmup=config.warmup,
            total=config.steps,
            schedule=config.schedule,
            floor=_COSINE_FLOOR,
        )
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
        norm = self._descend(loss, config.clip_norm)
        return {
            "loss": float(loss.detach()),
            "accuracy": float(accuracy),
            "grad_norm": norm,
            "learning_rate": rate,
        }

    def loss(self, ids: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over dyn_1 … dyn_{frames-1} within the dynamics vocabulary, and top-1 accuracy."""
        device_type = torch.device(self.device).type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits = self.model(ids, frames)
        targets = ids[:, torch.from_numpy(self.layout.predicted(frames)).to(ids.device)]
        logits = logits.float().flatten(0, 1)
        targets = targets.flatten() - self.layout.dynamics_range[0]
        return F.cross_entropy(logits, targets), (logits.detach().argmax(-1) == targets).float().mean()
