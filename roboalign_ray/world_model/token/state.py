"""The state of a batch of token rollouts: an immutable value that can be stepped, branched and saved.

    prompts ─► begin ─► state ─► step ─► state ─► step ─► …        a state may be stepped again, with other actions
                                   └─► branch ─► more rows, new seeds, one shared history

Codes and log-probabilities are small, and copied if that is simpler. Keys and values are shared between states
(`cache.py`). Rows of a group are adjacent: row = group * samples + sample. Frame 0 is the start frame; generated frames
count from 1. The action from frame t to frame t+1 is `actions[:, past + t]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.prompt_checks import check_branch
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.cache import KeyValueCache
from roboalign_ray.world_model.token.packed import PackedTransformer
from roboalign_ray.world_model.token.refresh_starts import SegmentStart
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment


class SharedPrefix:
    """Keys and values of the start of a rollout's groups, without an action; computed at first use.

    Steps whose rows have different first actions share it, and so do branches of the state.

    Args:
        ids: int64 [groups, L] of context and given frames.
        parent: the groups' origin, with their numbers there.
    """

    def __init__(self, ids: np.ndarray, parent: tuple[SharedPrefix, np.ndarray] | None = None) -> None:
        self.ids, self._parent = ids, parent
        self._made: tuple[PackedTransformer, KeyValueCache] | None = None

    def chosen(self, groups: np.ndarray) -> SharedPrefix:
        """The prefix of some groups, int [k] of their numbers."""
        return SharedPrefix(self.ids[groups], (self, groups))

    def cache(
        self, packed: PackedTransformer, prefill: Callable[[np.ndarray], KeyValueCache]
    ) -> KeyValueCache:
        """One row per group; `prefill` computes it unless it exists for these weights."""
        if self._made is None or self._made[0] is not packed:
            if self._parent is None:
                made = prefill(self.ids)
            else:
                parent, groups = self._parent
                made = parent.cache(packed, prefill)
                if not np.array_equal(groups, np.arange(made.groups)):
                    made = made.taken(torch.from_numpy(groups).to(made.own.device))
            self._made = (packed, made)
        return self._made[1]


@dataclass(frozen=True)
class GeneratedSegment:
    """A segment over all rows, complete or not.

    Attributes:
        start: the segment's start.
        first: number of frames generated before it.
        tokens, logprobs: codes int64 and float32 [rows, n, D].
        version, exact: see `TokenSegment`.
    """

    start: SegmentStart
    first: int
    tokens: np.ndarray
    logprobs: np.ndarray
    version: int
    exact: bool

    @property
    def frames(self) -> int:
        """Number of generated frames n."""
        return self.tokens.shape[1]


@dataclass(frozen=True)
class Memory:
    """The transformer's state of the last segment.

    Attributes:
        packed: the weights in use.
        cache: keys and values of all but the last token.
        kept: number of frames in the cache.
        lead: number of first own tokens of a row that belong to the last frame of the shared prefix.
    """

    packed: PackedTransformer
    cache: KeyValueCache
    kept: int
    lead: int = 0


@dataclass(frozen=True)
class TokenState:
    """A batch of rollouts at one time; see the module's docstring.

    Attributes:
        prompts: (id, instruction) per group.
        seeds: per group, equally many.
        past: number of given frames before the start frame.
        actions: bins int64 [rows, past + done, A].
        own_actions: whether samples of a group ever had different actions.
        first: the start of the first segment.
        prefix: keys and values of `first`.
        segments: segments so far; the last one may be incomplete.
        memory: memory of the last segment; None before the first step, and if the next segment starts from codes.
        origin: number of frames generated before the last branch, which other seeds determined.
        begin_seconds: wall time of `begin`; added to the first frame's.
        seconds: per generated frame, wall time of the batch.
        peak_sequence, cache_bytes: see `RolloutCost`.
    """

    prompts: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[int, ...], ...]
    past: int
    actions: np.ndarray
    own_actions: bool
    first: SegmentStart
    prefix: SharedPrefix
    segments: tuple[GeneratedSegment, ...] = ()
    memory: Memory | None = None
    origin: int = 0
    begin_seconds: float = 0.0
    seconds: tuple[float, ...] = ()
    peak_sequence: int = 0
    cache_bytes: int = 0

    @property
    def samples(self) -> int:
        """Number of rows per group."""
        return len(self.seeds[0])

    @property
    def rows(self) -> int:
        """Number of samples of all groups."""
        return len(self.seeds) * self.samples

    @property
    def frames(self) -> int:
        """Number of generated frames so far."""
        return self.actions.shape[1] - self.past

    def branch(self, rows: Sequence[int], seeds: Sequence[tuple[int, ...]], *, fold: bool) -> TokenState:
        """New groups that continue chosen rows; see `WorldModel.branch`. `fold`: see `KeyValueCache.branched`.

        Raises:
            UserError: a row does not exist, or the numbers of seeds and rows differ.
        """
        check_branch(rows, seeds, self.rows)
        chosen, samples = np.asarray(rows), len(seeds[0])
        groups = chosen // self.samples
        segments = tuple(
            replace(
                segment,
                start=segment.start.branched(chosen, self.samples),
                tokens=np.repeat(segment.tokens[chosen], samples, axis=0),
                logprobs=np.repeat(segment.logprobs[chosen], samples, axis=0),
            )
            for segment in self.segments
        )
        memory = self.memory
        if memory is not None:
            index = torch.from_numpy(chosen).to(memory.cache.own.device)
            memory = replace(memory, cache=memory.cache.branched(index, samples, fold=fold))
        return replace(
            self,
            prompts=tuple(self.prompts[group] for group in groups),
            seeds=tuple(tuple(own) for own in seeds),
            actions=np.repeat(self.actions[chosen], samples, axis=0),
            first=self.first.branched(chosen, self.samples),
            prefix=self.prefix.chosen(groups),
            segments=segments,
            memory=memory,
            origin=self.frames,
        )

    def rollouts(self) -> list[Rollout]:
        """Generated data since the last branch, one rollout per group.

        Raises:
            UserError: nothing was generated.
        """
        if self.frames == self.origin:
            raise UserError("nothing is generated yet", where="rollouts", remedy="step the state first")
        parts = [segment for segment in self.segments if segment.first + segment.frames > self.origin]
        cost = RolloutCost(np.array(self.seconds[self.origin :]), self.peak_sequence, self.cache_bytes)
        return [
            Rollout(
                prompt_id=prompt_id,
                instruction=instruction,
                seeds=self.seeds[group],
                payload=TokenPayload(tuple(self._part(segment, group) for segment in parts)),
                cost=replace(cost, seconds_per_frame=cost.seconds_per_frame.copy()),
                start=self.origin,
            )
            for group, (prompt_id, instruction) in enumerate(self.prompts)
        ]

    def _part(self, segment: GeneratedSegment, group: int) -> TokenSegment:
        """A group's part of a segment after the branch: earlier frames, which all rows share, become given frames."""
        rows = slice(group * self.samples, (group + 1) * self.samples)
        one, start = slice(group, group + 1), segment.start
        cut = max(0, self.origin - segment.first)
        given = start.given[one if start.given_shared else rows]
        if cut:
            given = np.concatenate([given, segment.tokens[rows][:1, :cut]], axis=1)
        end = self.past + segment.first + segment.frames
        begin = self.past + segment.first - start.given.shape[1] + 1
        actions = self.actions[rows, begin:end]
        return TokenSegment(
            context=start.context[one if start.context_shared else rows].astype(np.int32),
            given=given.astype(np.int32),
            actions=(actions if self.own_actions else actions[0]).astype(np.int32),
            tokens=segment.tokens[rows, cut:].astype(np.int32),
            logprobs=segment.logprobs[rows, cut:].copy(),
            version=segment.version,
            exact=segment.exact,
        )
