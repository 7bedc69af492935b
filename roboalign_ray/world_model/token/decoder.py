"""Token rollouts and states to pixels: needs the tokenizer, and nothing of the transformer."""

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
        tokenizer: the one that the world model was trained with.
        layout: slots and vocabulary of the world model.
        actions: what its actions mean, where that is known.
    """

    def __init__(
        self, tokenizer: Tokenizer, layout: SequenceLayout, actions: ActionCard | None = None
    ) -> None:
        self.codec, self._codes = FrameCodec(tokenizer), layout.codes
        self.card = token_card(layout, *tokenizer.frame_size, actions)

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, 1, H, W, 3], each segment under its own context.

        Raises:
            UserError: it is no token rollout.
            ValueError: a token is no code of the tokenizer.
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
            UserError: there is no such frame.
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
    """The card of a token world model of this layout and these actions, with frames of so many pixels."""
    return ModelCard(
        kind=TokenPayload.kind,
        views=1,
        height=height,
        width=width,
        action_dims=layout.action_tokens,
        actions=actions,
        capabilities=frozenset({"logprobs", "tokenizer"}),
    )
