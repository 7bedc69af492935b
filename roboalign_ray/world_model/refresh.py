"""Context refresh: how a long rollout is cut into segments, and what each segment starts from.

One interface, five policies:

    none               one segment; the prompt grows with the horizon
    swr                sliding-window re-encoding (RoboAlign-R1, arXiv 2605.03821): every `window` frames the last
                       predicted frame is decoded, clamped, rounded to the uint8 grid and re-encoded as context and as
                       frame 0 of a new prompt
    token_window       every `window` frames the prompt restarts from the first context and the last frame's tokens
    sinks              one segment; the cache keeps the first `sink_tokens` tokens and the last `window` frames
                       (StreamingLLM, arXiv 2309.17453), with positions counted within the cache
    reference_recent   every `window` frames the prompt restarts from the first context and the last `recent` frames,
                       decoded and re-encoded as given frames

A policy is stateless: it plans segment lengths from the horizon and makes a start from the previous segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.config import RefreshConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.codec import FrameCodec
from roboalign_ray.world_model.token.layout import SequenceLayout


@dataclass(frozen=True)
class SegmentStart:
    """The codes that a segment starts from. Rows of a group are adjacent; rows = groups * samples.

    Attributes:
        context: int64 [groups, C] if `context_shared`, else [rows, C].
        given: int64 [groups, m, D] if `given_shared`, else [rows, m, D].
        context_shared, given_shared: whether the samples of a group have them in common.
    """

    context: np.ndarray
    given: np.ndarray
    context_shared: bool
    given_shared: bool

    def context_rows(self, rows: int) -> np.ndarray:
        """Context per row, int64 [rows, C]."""
        return np.repeat(self.context, rows // len(self.context), axis=0)

    def given_rows(self, rows: int) -> np.ndarray:
        """Given frames per row, int64 [rows, m, D]."""
        return np.repeat(self.given, rows // len(self.given), axis=0)


class ContextRefresh:
    """What the engine asks of a policy.

    Attributes:
        cache_frames: frames kept in the cache, where the policy evicts; None keeps all of a segment.
        sink_tokens: first tokens that survive an eviction.
    """

    cache_frames: int | None = None
    sink_tokens: int = 0

    def __init__(self, config: RefreshConfig, layout: SequenceLayout) -> None:
        self.config = config

    def plan(self, horizon: int) -> tuple[int, ...]:
        """Frames of each segment; they sum to the horizon."""
        return (horizon,)

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        """The next segment's start.

        Args:
            previous: start of the segment that just ended.
            tokens: int64 [rows, n, D], the frames it generated.
            codec: for policies that go through pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} plans a single segment")


class NoRefresh(ContextRefresh):
    """Plain autoregression."""


class _Windowed(ContextRefresh):
    def plan(self, horizon: int) -> tuple[int, ...]:
        full, rest = divmod(horizon, self.config.window)
        return (self.config.window,) * full + ((rest,) if rest else ())


class SlidingWindowReencoding(_Windowed):
    """Decode, clamp, re-encode the last frame as context and as frame 0."""

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        frames = codec.decode(tokens[:, -1:], previous.context_rows(len(tokens)))
        context = codec.encode_context(frames[:, 0])
        return SegmentStart(context, codec.encode_dynamics(frames, context), False, False)


class TokenWindow(_Windowed):
    """Keep the context; the last frame's tokens become frame 0."""

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        return SegmentStart(previous.context, tokens[:, -1:], True, False)


class ReferenceRecent(_Windowed):
    """Keep the context; the last `recent` frames go through pixels and become given frames.

    Frames that were given already went through pixels under the same context: their codes are carried over.
    """

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        rows, recent = len(tokens), self.config.recent
        context = previous.context_rows(rows)
        renewed = codec.encode_dynamics(codec.decode(tokens[:, -recent:], context), context)
        given = np.concatenate([previous.given_rows(rows), renewed], axis=1)[:, -recent:]
        return SegmentStart(previous.context, given, True, False)


class AttentionSinks(ContextRefresh):
    """Keep the first tokens and the last frames in the cache; whole frames are evicted."""

    def __init__(self, config: RefreshConfig, layout: SequenceLayout) -> None:
        super().__init__(config, layout)
        if config.sink_tokens > layout.context_tokens:
            raise UserError(
                f"sink_tokens {config.sink_tokens} is more than the context's {layout.context_tokens} tokens",
                where="refresh",
                remedy=f"at most {layout.context_tokens} keeps the whole context",
            )
        self.cache_frames, self.sink_tokens = config.window, config.sink_tokens


_POLICIES: dict[str, type[ContextRefresh]] = {
    "none": NoRefresh,
    "swr": SlidingWindowReencoding,
    "token_window": TokenWindow,
    "sinks": AttentionSinks,
    "reference_recent": ReferenceRecent,
}


def make_refresh(config: RefreshConfig, layout: SequenceLayout) -> ContextRefresh:
    """The policy that `config` names.

    Raises:
        UserError: "sinks" with more sink tokens than the context has.
    """
    return _POLICIES[config.policy](config, layout)
