"""One batch of rollouts from first prompt to last frame: prompts of equal horizon, past and number of samples.

Rows of a group are adjacent: row = group * samples + sample. Frame 0 is the prompt's start frame; the action from frame
t to frame t+1 stands at `actions[past + t]`, behind those of the prompt's past.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.world_model.protocol import Prompt, Rollout, RolloutCost
from roboalign_ray.world_model.refresh import ContextRefresh, SegmentStart
from roboalign_ray.world_model.token.cache import KeyValueCache
from roboalign_ray.world_model.token.codec import FrameCodec
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.packed import PackedTransformer, Workspace
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment
from roboalign_ray.world_model.token.sampling import Sampler, uniforms

PREFILL_TOKENS_PER_CALL = 2048


@dataclass
class EngineCounters:
    """What was fed to the transformer since the engine was made; "computed once" in numbers.

    Attributes:
        prefix_tokens: tokens fed to build prefixes that a group shares.
        row_tokens: tokens fed per sample to start a segment.
        decode_steps: single-token steps, counted once for a whole batch.
        chunk_steps: chunks of a frame's last token and its action, counted once for a whole batch.
    """

    prefix_tokens: int = 0
    row_tokens: int = 0
    decode_steps: int = 0
    chunk_steps: int = 0


@dataclass(frozen=True)
class Parts:
    """What a batch needs of its engine. `weights` is asked once per segment for (weights, version)."""

    layout: SequenceLayout
    codec: FrameCodec
    refresh: ContextRefresh
    sampler: Sampler
    counters: EngineCounters
    weights: Callable[[], tuple[PackedTransformer, int]]


@dataclass(frozen=True)
class _Generated:
    """A finished segment over all rows."""

    start: SegmentStart
    actions: np.ndarray  # bins [groups, m - 1 + n, A]
    tokens: np.ndarray  # codes [rows, n, D]
    logprobs: np.ndarray  # float32 [rows, n, D]
    version: int
    exact: bool


class RolloutBatch:
    """Runs one batch.

    Args:
        parts: the engine's parts.
        prompts: of equal horizon and equally many given frames.
        seeds: per prompt, equally many.
    """

    def __init__(self, parts: Parts, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> None:
        self.parts, self.prompts, self.seeds = parts, prompts, seeds
        self.samples = len(seeds[0])
        self.rows = len(prompts) * self.samples
        self.horizon, self.past = prompts[0].horizon, prompts[0].given - 1
        self.actions = np.stack([_all_actions(prompt) for prompt in prompts]).astype(np.int64)
        self.seconds = np.zeros(self.horizon)
        self.peak_sequence = self.cache_bytes = 0
        self._workspaces: dict[int, Workspace] = {}
        flat = [seed for samples in seeds for seed in samples]
        self._uniforms = torch.from_numpy(uniforms(flat, self.horizon * parts.layout.dynamics_tokens))

    @torch.inference_mode()
    def run(self) -> list[Rollout]:
        """One rollout per prompt."""
        segments: list[_Generated] = []
        packed: PackedTransformer | None = None
        cache: KeyValueCache | None = None
        done, clock = 0, time.perf_counter()
        for frames in self.parts.refresh.plan(self.horizon):
            if segments:
                last = segments[-1]
                start = self.parts.refresh.restart(last.start, last.tokens, self.parts.codec)
            else:
                start = self._first()
            previous, (packed, version) = packed, self.parts.weights()
            # Keys and values of a shared context outlive the segment, unless the weights changed.
            reusable = cache if packed is previous and start.context_shared else None
            del cache
            cache, logits = self._begin(packed, start, done, frames, reusable)
            del reusable
            tokens, logprobs, exact = self._generate(packed, cache, logits, start, done, frames, clock)
            actions = self._actions(done - start.given.shape[1] + 1, done + frames)
            segments.append(_Generated(start, actions, tokens, logprobs, version, exact))
            done, clock = done + frames, time.perf_counter()
        return [self._group(index, segments) for index in range(len(self.prompts))]

    def _first(self) -> SegmentStart:
        context = self.parts.codec.encode_context(np.stack([p.context for p in self.prompts]))
        given = np.stack([_given_frames(prompt) for prompt in self.prompts])
        return SegmentStart(context, self.parts.codec.encode_dynamics(given, context), True, True)

    def _actions(self, first: int, last: int) -> np.ndarray:
        """Bins [groups, last - first, A] of the actions that follow frames first … last - 1; frame 0 is the start."""
        return self.actions[:, self.past + first : self.past + last]

    def _begin(
        self,
        packed: PackedTransformer,
        start: SegmentStart,
        done: int,
        frames: int,
        reusable: KeyValueCache | None,
    ) -> tuple[KeyValueCache, Tensor]:
        """Prefill a segment: its cache, and logits [rows, codes] for the first token of its first frame."""
        layout, counters = self.parts.layout, self.parts.counters
        actions = self._actions(done - start.given.shape[1] + 1, done + 1)
        kept = self.parts.refresh.cache_frames
        room = layout.frame_tokens * (frames if kept is None else min(frames, kept + 1))
        if start.given_shared:
            ids = layout.assemble(start.context, start.given, actions)
            prefix = packed.empty_cache(*ids.shape)
            logits = self._prefill(packed, prefix, ids)
            counters.prefix_tokens += ids.size
            return prefix.branch(self.samples, room), logits.repeat_interleave(self.samples, 0)
        actions = np.repeat(actions, self.samples, axis=0)
        ids = layout.assemble(start.context_rows(self.rows), start.given, actions)
        if start.context_shared:
            context, ids = np.split(ids, [layout.context_tokens], axis=1)
            cache = self._share_context(packed, context[:: self.samples], ids.shape[1] + room, reusable)
        else:
            cache = packed.empty_cache(self.rows, ids.shape[1] + room)
        counters.row_tokens += ids.size
        return cache, self._prefill(packed, cache, ids)

    def _share_context(
        self, packed: PackedTransformer, context: np.ndarray, capacity: int, reusable: KeyValueCache | None
    ) -> KeyValueCache:
        if reusable is not None:
            return reusable.rebranch(context.shape[1], capacity)
        prefix = packed.empty_cache(*context.shape)
        self._prefill(packed, prefix, context)
        self.parts.counters.prefix_tokens += context.size
        return prefix.branch(self.samples, capacity)

    def _prefill(self, packed: PackedTransformer, cache: KeyValueCache, ids: np.ndarray) -> Tensor:
        """Feed ids [rows, L] in blocks of whole groups, to bound activations; logits [rows, codes]."""
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

    def _generate(
        self,
        packed: PackedTransformer,
        cache: KeyValueCache,
        logits: Tensor,
        start: SegmentStart,
        done: int,
        frames: int,
        clock: float,
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Sample `frames` frames: tokens and log-probabilities [rows, frames, D], and whether nothing was evicted."""
        layout, counters, kept = self.parts.layout, self.parts.counters, start.given.shape[1]
        size, device, exact = layout.dynamics_tokens, packed.device, True
        uniform = self._uniforms[:, done * size : (done + frames) * size].to(device)
        tokens = torch.empty((self.rows, frames * size), dtype=torch.int64, device=device)
        logprobs = torch.empty((self.rows, frames * size), device=device)
        injected = torch.from_numpy(self._actions(done + 1, done + frames) + layout.action_range[0])
        injected = injected.to(device).repeat_interleave(self.samples, 0)
        for frame in range(frames):
            self.peak_sequence = max(self.peak_sequence, cache.position)
            self.cache_bytes = max(self.cache_bytes, cache.bytes_per_group)
            for column in range(frame * size, (frame + 1) * size):
                token, logprob = self.parts.sampler.draw(logits, uniform[:, column : column + 1])
                tokens[:, column : column + 1] = token
                logprobs[:, column : column + 1] = logprob
                if (column + 1) % size:
                    logits = packed.forward(token, cache, self._workspace(packed, 1))
                    counters.decode_steps += 1
            if frame + 1 < frames:
                kept += 1
                if self.parts.refresh.cache_frames is not None and kept > self.parts.refresh.cache_frames:
                    turn = packed.phases(cache.position + 1)
                    cache.evict(self.parts.refresh.sink_tokens, layout.frame_tokens, turn)
                    kept, exact = kept - 1, False
                chunk = torch.cat([token, injected[:, frame]], dim=1)
                logits = packed.forward(chunk, cache, self._workspace(packed, chunk.shape[1]))
                counters.chunk_steps += 1
            now = time.perf_counter()
            self.seconds[done + frame], clock = now - clock, now
        shape = (self.rows, frames, size)
        return tokens.cpu().numpy().reshape(shape), logprobs.cpu().numpy().reshape(shape), exact

    def _workspace(self, packed: PackedTransformer, chunk: int) -> Workspace:
        if chunk not in self._workspaces:
            self._workspaces[chunk] = Workspace(packed, self.rows, chunk)
        return self._workspaces[chunk]

    def _group(self, index: int, segments: list[_Generated]) -> Rollout:
        rows = slice(index * self.samples, (index + 1) * self.samples)
        one = slice(index, index + 1)
        prompt = self.prompts[index]
        parts = tuple(
            TokenSegment(
                context=s.start.context[one if s.start.context_shared else rows].astype(np.int32),
                given=s.start.given[one if s.start.given_shared else rows].astype(np.int32),
                actions=s.actions[index].astype(np.int32),
                tokens=s.tokens[rows].astype(np.int32),
                logprobs=s.logprobs[rows].copy(),
                version=s.version,
                exact=s.exact,
            )
            for s in segments
        )
        cost = RolloutCost(self.seconds.copy(), self.peak_sequence, self.cache_bytes)
        payload, seeds = TokenPayload(parts), tuple(self.seeds[index])
        return Rollout(prompt.prompt_id, prompt.instruction, seeds, payload, cost)


def _all_actions(prompt: Prompt) -> np.ndarray:
    """Bins [past + T, A]."""
    if prompt.past_actions is None:
        return prompt.actions
    return np.concatenate([prompt.past_actions, prompt.actions])


def _given_frames(prompt: Prompt) -> np.ndarray:
    """Uint8 [past + 1, H, W, 3]."""
    start = prompt.start[None]
    return start if prompt.past is None else np.concatenate([prompt.past, start])
