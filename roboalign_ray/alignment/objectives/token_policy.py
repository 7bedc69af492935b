"""The policy: a token world model seen as a distribution over the dynamics tokens that it generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from roboalign_ray.alignment.objectives.protocol import PolicyModel
from roboalign_ray.alignment.objectives.token_batch import MicroBatch
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import (
    load_pretrained,
    predicted_codes,
    save_pretrained,
    slot_logits,
)


class TokenPolicy(PolicyModel):
    """A LLaMA whose forward pass gives log-probabilities, so that a distributed wrapper sees one module.

    Log-probabilities are those of the slot's vocabulary at temperature 1, as rollouts record them.

    Args:
        model: a LLaMA.
        layout: of its sequences.
        actions: how it reads actions, for the folder that `save` writes; None writes nothing about them.
        card: what its actions mean, for that folder too; None where that is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: SequenceLayout,
        actions: ActionBinner | None = None,
        card: ActionCard | None = None,
    ) -> None:
        super().__init__()
        self.model, self.layout, self.actions, self.card = model, layout, actions, card

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

    def inputs(self, item: MicroBatch, device: torch.device | str) -> tuple[Tensor, int, int]:
        """Arguments of `forward` for a micro-batch."""
        return torch.from_numpy(item.ids).to(device), item.frames, item.frames - item.generated

    def weights(self) -> Mapping[str, Tensor]:
        """Those of the whole LLaMA."""
        weights: Mapping[str, Tensor] = self.model.state_dict()
        return weights

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face directory."""
        save_pretrained(self.model, self.layout, folder)
        if self.actions is not None:
            self.actions.save(folder)
        if self.card is not None:
            self.card.save(folder)


def open_token_policy(folder: Path) -> TokenPolicy:
    """A token world model as a policy, float32 on the CPU.

    Raises:
        UserError: the folder holds no token world model.
    """
    model, layout = load_pretrained(folder)
    return TokenPolicy(model, layout, ActionBinner.load(folder), ActionCard.load(folder))


def predict_batch(
    policy: TokenPolicy, batch: MicroBatch, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A policy without an engine on a micro-batch: log-probabilities and entropies, float32 [B, N]."""
    logprobs, entropy = policy(*policy.inputs(batch, device))
    return logprobs, entropy
