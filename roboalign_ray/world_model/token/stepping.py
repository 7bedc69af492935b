"""One step of a batch of rollouts, of any number of frames: sampling, the key-value cache, context refresh.

Rows of a group are adjacent; see `state.py`. Dividing a rollout into steps does not change its bits: every token is
computed by the same operations on the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.world_model.token.cache import KeyValueCache
from roboalign_ray.world_model.token.codec import FrameCodec
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.packed import PackedTransformer, Workspace
from roboalign_ray.world_model.token.refresh_starts import RefreshStarts, SegmentStart
from roboalign_ray.world_model.token.sampling import Sampler, uniforms
from roboalign_ray.world_model.token.state import GeneratedSegment, Memory, TokenState

PREFILL_TOKENS_PER_CALL = 2048


@dataclass
class EngineCounters:
    """Counts of the transformer's work since the engine was created, to show what is computed once.

    Attributes:
        prefix_tokens: tokens processed for prefixes that a group shares.
        row_tokens: tokens processed per sample to start a segment.
        decode_steps: single-token steps, counted once for a whole batch.
        chunk_steps: chunks of a frame's last token and its action, counted once for a whole batch.
    """

    prefix_tokens: int = 0
    row_tokens: int = 0
    decode_steps: int = 0
    chunk_steps: int = 0


@dataclass(frozen=True)
class Parts:
    """The engine's parts for a step. `weights` is called once per segment for (weights, version)."""

    layout: SequenceLayout
    codec: FrameCodec
    refresh: RefreshStarts
    sampler: Sampler
    counters: EngineCounters
    weights: Callable[[], tuple[PackedTransformer, int]]


class Step:
    """Runs one step.

    Args:
        parts: the engine's parts.
        state: the state to continue from; unchanged.
        bins: actions int64 [rows, h, A].
        together: whether the samples of a group have the same actions: the first action is then part of the prefix.
    """

    def __init__(self, parts: Parts, state: TokenState, bins: np.ndarray, together: bool) -> None:
        self.parts, self.state, self.together = parts, state, together
        self.samples, self.rows = state.samples, state.rows
        self.actions = np.concatenate([state.actions, bins], axis=1)
        self.done, self.horizon = state.frames, state.frames + bins.shape[1]
        self.segments, self.memory = list(state.segments), state.memory
        self.seconds = list(state.seconds)
        self.peak_sequence, self.cache_bytes = state.peak_sequence, state.cache_bytes
        self._workspaces: dict[int, Workspace] = {}
        flat, size = [seed for own in state.seeds for seed in own], parts.layout.dynamics_tokens
        drawn = uniforms(flat, (self.horizon - state.origin) * size)
        self._uniforms = torch.from_numpy(drawn[:, (self.done - state.origin) * size :])
        self._clock = time.perf_counter() - (0.0 if self.seconds else state.begin_seconds)

    @torch.inference_mode()
    def run(self) -> TokenState:
        """The state `h` frames later."""
        began = self.done
        while self.done < self.horizon:
            left = self._left()
            logits = self._begin() if not left else self._go_on(min(left, self.horizon - self.done))
            self._generate(logits, began)
        memory = self.memory
        if not self._left() and not self.parts.refresh.policy.keeps_context:
            memory = None  # the next segment starts from codes: this one's memory is not used again
        return replace(
            self.state,
            actions=self.actions,
            own_actions=self.state.own_actions or not self.together,
            segments=tuple(self.segments),
            memory=memory,
            seconds=tuple(self.seconds),
            peak_sequence=self.peak_sequence,
            cache_bytes=self.cache_bytes,
        )

    def _left(self) -> int:
        """Number of frames that fit into the current segment; 0 if there is none, or if it is complete."""
        if not self.segments:
            return 0
        left = self.parts.refresh.policy.left(self.segments[-1].frames)
        return self.horizon - self.done + 1 if left is None else left

    def _bins(self, first: int, last: int) -> np.ndarray:
        """Bins [rows, last - first, A] of the actions after frames first … last - 1; frame 0 is the start."""
        return self.actions[:, self.state.past + first : self.state.past + last]

    # --- the start of a segment ------------------------------------------------------------------------------------

    def _begin(self) -> Tensor:
        """Begin a segment and prefill it: logits [rows, codes] for the first token of its first frame."""
        if self.segments:
            last = self.segments[-1]
            start = self.parts.refresh.restart(last.start, last.tokens, self.parts.codec)
        else:
            start = self.state.first
        packed, version = self.parts.weights()
        most = self.parts.refresh.policy.left(0)
        left = self.horizon - self.done
        frames = left if most is None else min(most, left)
        # Keys and values of a shared context are kept after the segment, unless the weights changed.
        held, self.memory = self.memory, None
        same = held is not None and held.packed is packed and start.context_shared
        reusable = held.cache if held is not None and same else None
        del held
        cache, logits = self._prefilled(packed, start, frames, reusable)
        lead = 0 if self.together or not start.given_shared else self.parts.layout.action_tokens
        self.memory = Memory(packed, cache, start.given.shape[1], lead)
        size = self.parts.layout.dynamics_tokens
        empty = np.empty((self.rows, 0, size), np.int64), np.empty((self.rows, 0, size), np.float32)
        self.segments.append(GeneratedSegment(start, self.done, *empty, version, exact=True))
        return logits

    def _prefilled(
        self, packed: PackedTransformer, start: SegmentStart, frames: int, reusable: KeyValueCache | None
    ) -> tuple[KeyValueCache, Tensor]:
        layout, counters = self.parts.layout, self.parts.counters
        room = layout.frame_tokens * self._held(frames)
        actions = self._bins(self.done - start.given.shape[1] + 1, self.done + 1)
        if start.given_shared and self.together:
            ids = layout.assemble(start.context, start.given, actions[:: self.samples])
            prefix = packed.empty_cache(*ids.shape)
            logits = self._prefill(packed, prefix, ids)
            counters.prefix_tokens += ids.size
            return prefix.branch(self.samples, room), logits.repeat_interleave(self.samples, 0)
        if start.given_shared:
            prefix = self.state.prefix.cache(packed, lambda ids: self._prefix(packed, ids))
            cache = prefix.branch(self.samples, room + layout.action_tokens)
            ids = actions[:, -1] + layout.action_range[0]
        else:
            ids = layout.assemble(start.context_rows(self.rows), start.given, actions)
            if start.context_shared:
                context, ids = np.split(ids, [layout.context_tokens], axis=1)
                cache = self._share_context(packed, context[:: self.samples], ids.shape[1] + room, reusable)
            else:
                cache = packed.empty_cache(self.rows, ids.shape[1] + room)
        counters.row_tokens += ids.size
        return cache, self._prefill(packed, cache, ids)

    def _held(self, frames: int) -> int:
        """Maximum of own frames that rows hold at once when they generate this number."""
        kept = self.parts.refresh.cache_frames
        return frames if kept is None else min(frames, kept + 1)

    def _prefix(self, packed: PackedTransformer, ids: np.ndarray) -> KeyValueCache:
        """The prefix of ids [groups, L], one row per group."""
        prefix = packed.empty_cache(*ids.shape)
        self._prefill(packed, prefix, ids)
        self.parts.counters.prefix_tokens += ids.size
        return prefix

    def _share_context(
        self, packed: PackedTransformer, context: np.ndarray, capacity: int, reusable: KeyValueCache | None
    ) -> KeyValueCache:
        if reusable is not None:
            return reusable.rebranch(context.shape[1], capacity)
        return self._prefix(packed, context).branch(self.samples, capacity)

    def _prefill(self, packed: PackedTransformer, cache: KeyValueCache, ids: np.ndarray) -> Tensor:
        """Process ids [rows, L] in blocks of whole groups, which bounds activations; logits [rows, codes]."""
        step = max(1, PREFILL_TOKENS_PER_CALL // (ids.shape[1] * cache.samples))
        tokens = torch.from_numpy(np.ascontiguousarray(ids)).to(packed.device)
        logits = []
        for first in range(0, cache.groups, step):
            last = min(first + step, cache.groups)
            block = tokens[first * cache.samples : last * cache.samples]
            workspace = Workspace(packed, *block.shape)
            logits.append(packed.forward(block, cache.groups_block(first, last), workspace))
        cache.length += ids.shape[1]
        return torch.cat(logits)

    # --- frames ----------------------------------------------------------------------------------------------------

    def _go_on(self, frames: int) -> Tensor:
        """Continue the current segment: logits for the first token of its next frame."""
        assert self.memory is not None
        refresh, cache = self.parts.refresh, self.memory.cache
        needed = cache.length + frames * self.parts.layout.frame_tokens
        if refresh.cache_frames is not None:
            needed = min(needed, (refresh.cache_frames + 1) * self.parts.layout.frame_tokens)
            needed = max(needed, cache.length + self.parts.layout.frame_tokens)
        elif needed > cache.capacity:
            needed = max(needed, 2 * cache.length)  # steps of one frame then copy each token only a few times
        cache = cache.continued(needed, copy=refresh.cache_frames is not None)
        self.memory = replace(self.memory, cache=cache)
        last = torch.from_numpy(self.segments[-1].tokens[:, -1, -1:])
        return self._next_frame(last.to(self.memory.packed.device))

    def _next_frame(self, last_token: Tensor) -> Tensor:
        """Process a frame's last token [rows, 1] with the action after it; evict a frame if the policy does so."""
        memory, layout = self.memory, self.parts.layout
        assert memory is not None
        packed, cache, kept = memory.packed, memory.cache, memory.kept + 1
        most = self.parts.refresh.cache_frames
        if most is not None and kept > most:
            turn = packed.phases(cache.position + 1)
            cache.evict(self.parts.refresh.sink_tokens, layout.frame_tokens, turn, memory.lead)
            kept -= 1
            self.segments[-1] = replace(self.segments[-1], exact=False)
        self.memory = replace(memory, kept=kept)
        bins = torch.from_numpy(self._bins(self.done, self.done + 1)[:, 0] + layout.action_range[0])
        chunk = torch.cat([last_token, bins.to(packed.device)], dim=1)
        self.parts.counters.chunk_steps += 1
        return packed.forward(chunk, cache, self._workspace(packed, chunk.shape[1]))

    def _generate(self, logits: Tensor, began: int) -> None:
        """Sample frames until the segment or the step ends, and add them to the segment."""
        assert self.memory is not None
        size, device = self.parts.layout.dynamics_tokens, self.memory.packed.device
        segment = self.segments[-1]
        left = self.parts.refresh.policy.left(segment.frames)
        frames = self.horizon - self.done if left is None else min(left, self.horizon - self.done)
        first = (self.done - began) * size
        uniform = self._uniforms[:, first : first + frames * size].to(device)
        tokens = torch.empty((self.rows, frames * size), dtype=torch.int64, device=device)
        logprobs = torch.empty((self.rows, frames * size), device=device)
        for frame in range(frames):
            if frame:
                logits = self._next_frame(tokens[:, frame * size - 1 : frame * size])
            self._frame(
                logits, *(part[:, frame * size : (frame + 1) * size] for part in (uniform, tokens, logprobs))
            )
            self.done += 1
            now = time.perf_counter()
            self.seconds.append(now - self._clock)
            self._clock = now
        shape = (self.rows, frames, size)
        parts = [part.cpu().numpy().reshape(shape) for part in (tokens, logprobs)]
        segment = self.segments[-1]
        if segment.frames:
            before = segment.tokens, segment.logprobs
            parts = [np.concatenate(pair, axis=1) for pair in zip(before, parts, strict=True)]
        self.segments[-1] = replace(segment, tokens=parts[0], logprobs=parts[1])

    def _frame(self, logits: Tensor, uniform: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """Sample one frame's tokens and log-probabilities [rows, D], written in place."""
        assert self.memory is not None
        packed, cache = self.memory.packed, self.memory.cache
        self.peak_sequence = max(self.peak_sequence, cache.position)
        self.cache_bytes = max(self.cache_bytes, cache.bytes_per_group)
        last = tokens.shape[1] - 1
        for column in range(tokens.shape[1]):
            one = slice(column, column + 1)
            token, logprob = self.parts.sampler.draw(logits, uniform[:, one])
            tokens[:, one] = token
            logprobs[:, one] = logprob
            if column < last:
                logits = packed.forward(token, cache, self._workspace(packed, 1))
                self.parts.counters.decode_steps += 1

    def _workspace(self, packed: PackedTransformer, chunk: int) -> Workspace:
        if chunk not in self._workspaces:
            self._workspaces[chunk] = Workspace(packed, self.rows, chunk)
        return self._workspaces[chunk]
