"""Decodes token rollouts and states to pixels, with the tokenizer only."""

from __future__ import annotations

import numpy as np

from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import ModelCard, Rollout
from roboalign_ray.world_model.token.codec import FrameCodec, Tokenizer
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenPayload, token_payload
from roboalign_ray.world_model.token.state import TokenState


class TokenDecoder:
    """Implements the `Decoder` protocol.

    Args:
        tokenizer: the tokenizer of the world model.
        layout: layout of the world model's sequences.
        actions: the model's action card, if known.
    """

    def __init__(
        self, tokenizer: Tokenizer, layout: SequenceLayout, actions: ActionCard | None = None
    ) -> None:
        self.codec, self._codes = FrameCodec(tokenizer), layout.codes
        self.card = token_card(layout, *tokenizer.frame_size, actions)

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, 1, H, W, 3], each segment with its own context.

        Raises:
            UserError: the rollout is not of tokens.
            ValueError: a token is not a code of the tokenizer.
        """
        payload = token_payload(rollout)
        try:
            payload.check_codes(self._codes)
        except ValueError as error:
            raise ValueError(f"{rollout.prompt_id}: {error}") from None
        parts = [
            self.codec.decode(s.tokens, np.broadcast_to(s.context, (payload.samples, s.context.shape[-1])))
            for s in payload.segments
        ]
        return np.concatenate(parts, axis=1)[:, :, None]

    def frames(self, state: TokenState, since: int) -> np.ndarray:
        """Generated frames from number `since` on: uint8 [rows, n, 1, H, W, 3].

        Raises:
            UserError: the frame does not exist.
        """
        if not 0 <= since < state.frames:
            raise UserError(f"no frame {since} among {state.frames} generated ones", where="frames")
        parts = [
            self.codec.decode(s.tokens[:, max(0, since - s.first) :], s.start.context_rows(state.rows))
            for s in state.segments
            if s.first + s.frames > since
        ]
        return np.concatenate(parts, axis=1)[:, :, None]


def token_card(
    layout: SequenceLayout, height: int, width: int, actions: ActionCard | None = None
) -> ModelCard:
    """The card of a token world model with this layout, action card and frame size."""
    return ModelCard(
        kind=TokenPayload.kind,
        views=1,
        height=height,
        width=width,
        action_dims=layout.action_tokens,
        actions=actions,
        capabilities=frozenset({"logprobs", "tokenizer"}),
    )
