"""The start of a token segment: how codes are carried over a context refresh.

A policy is stateless: it makes a start from the previous segment. `RefreshPlan` determines where segments end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roboalign_ray.config import RefreshConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.refresh import RefreshPlan
from roboalign_ray.world_model.token.codec import FrameCodec
from roboalign_ray.world_model.token.layout import SequenceLayout


@dataclass(frozen=True)
class SegmentStart:
    """The codes that a segment starts from. Rows of a group are adjacent; rows = groups * samples.

    Attributes:
        context: int64 [groups, C] if `context_shared`, else [rows, C].
        given: int64 [groups, m, D] if `given_shared`, else [rows, m, D].
        context_shared, given_shared: whether the samples of a group share them.
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

    def branched(self, chosen: np.ndarray, samples: int) -> SegmentStart:
        """The start of new groups, each from one row: int [k] of rows; each old group has `samples` rows."""
        groups = chosen // samples
        context = self.context[groups if self.context_shared else chosen]
        return SegmentStart(context, self.given[groups if self.given_shared else chosen], True, True)


class RefreshStarts:
    """Interface of a policy for the engine.

    Attributes:
        policy: where segments end.
        cache_frames: number of frames kept in the cache, if the policy evicts; None keeps the whole segment.
        sink_tokens: number of first tokens that are never evicted.
    """

    cache_frames: int | None = None
    sink_tokens: int = 0

    def __init__(self, config: RefreshConfig, layout: SequenceLayout) -> None:
        self.config, self.policy = config, RefreshPlan.of(config)

    def plan(self, horizon: int) -> tuple[int, ...]:
        """Number of frames of each segment; they sum to the horizon."""
        return self.policy.segments(horizon)

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        """The next segment's start.

        Args:
            previous: start of the segment that just ended.
            tokens: int64 [rows, n, D], the frames it generated.
            codec: for policies that decode and re-encode pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} plans a single segment")


class NoRefresh(RefreshStarts):
    """Plain autoregression."""


class SlidingWindowReencoding(RefreshStarts):
    """Decode, clamp, re-encode the last frame as context and as frame 0."""

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        frames = codec.decode(tokens[:, -1:], previous.context_rows(len(tokens)))
        context = codec.encode_context(frames[:, 0])
        return SegmentStart(context, codec.encode_dynamics(frames, context), False, False)


class TokenWindow(RefreshStarts):
    """Keep the context; the last frame's tokens become frame 0."""

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        return SegmentStart(previous.context, tokens[:, -1:], True, False)


class ReferenceRecent(RefreshStarts):
    """Keep the context; the last `recent` frames are decoded, re-encoded and become given frames.

    Given frames were already re-encoded with the same context: their codes are carried over.
    """

    def restart(self, previous: SegmentStart, tokens: np.ndarray, codec: FrameCodec) -> SegmentStart:
        rows, recent = len(tokens), self.config.recent
        context = previous.context_rows(rows)
        renewed = codec.encode_dynamics(codec.decode(tokens[:, -recent:], context), context)
        given = np.concatenate([previous.given_rows(rows), renewed], axis=1)[:, -recent:]
        return SegmentStart(previous.context, given, True, False)


class AttentionSinks(RefreshStarts):
    """Keep the first tokens and the last frames in the cache; evict whole frames."""

    def __init__(self, config: RefreshConfig, layout: SequenceLayout) -> None:
        super().__init__(config, layout)
        if config.sink_tokens > layout.context_tokens:
            raise UserError(
                f"sink_tokens {config.sink_tokens} is more than the context's {layout.context_tokens} tokens",
                where="refresh",
                remedy=f"at most {layout.context_tokens} keeps the whole context",
            )
        self.cache_frames, self.sink_tokens = config.window, config.sink_tokens


_POLICIES: dict[str, type[RefreshStarts]] = {
    "none": NoRefresh,
    "swr": SlidingWindowReencoding,
    "token_window": TokenWindow,
    "sinks": AttentionSinks,
    "reference_recent": ReferenceRecent,
}


def make_refresh(config: RefreshConfig, layout: SequenceLayout) -> RefreshStarts:
    """The policy that `config` names.

    Raises:
        UserError: "sinks" with more sink tokens than the context has.
    """
    return _POLICIES[config.policy](config, layout)
