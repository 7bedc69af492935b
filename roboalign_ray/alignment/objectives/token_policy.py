"""The policy: a token world model seen as a distribution over the dynamics tokens that it generated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from roboalign_ray.alignment.objectives.token_batch import MicroBatch
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import predicted_codes, slot_logits


class TokenPolicy(nn.Module):
    """A LLaMA whose forward pass gives log-probabilities, so that a distributed wrapper sees one module.

    Log-probabilities are those of the slot's vocabulary at temperature 1, as rollouts record them.
    """

    def __init__(self, model: nn.Module, layout: SequenceLayout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, ids: Tensor, frames: int, given: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the tokens after the given frames, and entropies of their distributions.

        Args:
            ids: int64 [B, L].
            frames: frames in `ids`; the first `given` of them are not predicted.

        Returns:
            float32 [B, (frames - given) * D] both, nats; the entropies carry no gradient.
        """
        logits = slot_logits(self.model, ids, self.layout, frames, given=given).float()
        logprobs = logits.log_softmax(-1)
        codes = predicted_codes(ids, self.layout, frames, given=given)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, codes.unsqueeze(-1)).squeeze(-1), entropy


def predict_batch(
    policy: nn.Module, batch: MicroBatch, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """`TokenPolicy` (or its wrapper) on a micro-batch: log-probabilities and entropies, float32 [B, N]."""
    ids = torch.from_numpy(batch.ids).to(device)
    return policy(ids, batch.frames, batch.frames - batch.generated)
