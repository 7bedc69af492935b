"""Converts scored rollouts to training sequences and micro-batches.

Each segment of a rollout is a separate sequence, [context][given …][act][generated]…: this is all that the model saw
when it generated the segment. Sequences of the same shape are stacked, so no micro-batch contains padding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenSegment, token_payload
from roboalign_ray.world_model.token.transformer import segment_ids


@dataclass(frozen=True)
class TrainingSequence:
    """One segment of one sample.

    Attributes:
        ids: int64 [L], ends with the last generated frame.
        frames: number of frames in `ids`, given and generated.
        generated: number of last frames n whose tokens are trained on.
        behaviour: float32 [n * D], log-probabilities under the policy that sampled them.
        advantages: float32 [n * D], per trained token.
        version: weight version that generated the segment.
    """

    ids: np.ndarray
    frames: int
    generated: int
    behaviour: np.ndarray
    advantages: np.ndarray
    version: int

    @property
    def tokens(self) -> int:
        """Number of trained tokens."""
        return len(self.behaviour)


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one shape.

    Attributes:
        ids: int64 [B, L].
        frames, generated: as in `TrainingSequence`.
        behaviour, advantages: float32 [B, N].
        mask: float32 [B, N]; all 0 in a micro-batch that only equalises the number of passes over ranks.
        versions: int64 [B], weight version that generated each sequence.
    """

    ids: np.ndarray
    frames: int
    generated: int
    behaviour: np.ndarray
    advantages: np.ndarray
    mask: np.ndarray
    versions: np.ndarray

    def silenced(self) -> MicroBatch:
        """The same shape, with mask 0."""
        return replace(self, mask=np.zeros_like(self.mask))

    def older_than(self, version: int | None) -> np.ndarray:
        """Bool [B, N]: tokens of segments of older weights than this version; all tokens if it is None."""
        older = np.ones_like(self.versions, bool) if version is None else self.versions < version
        return np.repeat(older[:, None], self.behaviour.shape[1], axis=1)


def check_trainable(rollout: RolloutConfig) -> None:
    """Refuse rollout settings whose log-probabilities a forward pass cannot reproduce.

    Raises:
        UserError: context policy "sinks", or sampling from another distribution than the model's own.
    """
    if rollout.refresh.policy == "sinks":
        raise UserError(
            "samples of policy 'sinks' cannot be trained on: they rest on a cache that no forward pass has",
            where="rollout.refresh.policy",
            remedy="use none, swr, token_window or reference_recent",
        )
    if rollout.sampling.temperature != 1.0 or rollout.sampling.top_k:
        raise UserError(
            f"temperature {rollout.sampling.temperature:g} with top_k {rollout.sampling.top_k} samples from "
            "another distribution than the one that is trained",
            where="rollout.sampling",
            remedy="align with temperature 1 and top_k 0",
        )


def training_sequences(
    groups: Sequence[ScoredGroup], advantages: Sequence[GroupAdvantages], layout: SequenceLayout
) -> list[TrainingSequence]:
    """Sequences of all valid samples, in the order group, segment, sample.

    Args:
        advantages: advantages of each group.

    Raises:
        UserError: a segment's log-probabilities are not exact.
    """
    sequences: list[TrainingSequence] = []
    for group, values in zip(groups, advantages, strict=True):
        first = 0
        for segment in token_payload(group.rollout).segments:
            sequences += _segment_sequences(segment, first, values, layout, group.rollout.prompt_id)
            first += segment.tokens.shape[1]
    return sequences


def _segment_sequences(
    segment: TokenSegment, first: int, advantages: GroupAdvantages, layout: SequenceLayout, where: str
) -> list[TrainingSequence]:
    """One sequence per valid sample; `first` is the segment's first frame in the rollout."""
    if not segment.exact:
        raise UserError(
            "a segment's log-probabilities cannot be reproduced by a forward pass",
            where=where,
            remedy="align with another rollout.refresh.policy than 'sinks'",
        )
    ids_GL = segment_ids(segment, layout)
    generated, tokens = segment.tokens.shape[1:]
    frames = segment.given.shape[1] + generated
    values = advantages.values
    per_frame = (
        values[:, first : first + generated] if values.ndim == 2 else values[:, None].repeat(generated, 1)
    )
    per_token = per_frame.repeat(tokens, axis=1).astype(np.float32)
    return [
        TrainingSequence(
            ids=ids_GL[sample],
            frames=frames,
            generated=generated,
            behaviour=segment.logprobs[sample].reshape(-1).astype(np.float32),
            advantages=per_token[sample],
            version=segment.version,
        )
        for sample in np.flatnonzero(advantages.valid)
    ]


def micro_batches(
    sequences: list[TrainingSequence], token_budget: int, *, rank: int = 0, ranks: int = 1
) -> list[MicroBatch]:
    """This rank's share of the sequences, stacked by shape, at most `token_budget` ids each (or one row).

    Every rank gets equally many micro-batches, because forward passes contain collective operations: shorter lists are
    filled with masked ones. The result depends only on the arguments, without communication between ranks. Only this
    rank's share is stacked.
    """
    shares = [_chunks(sequences[other::ranks], token_budget) for other in range(ranks)]
    longest = max(len(share) for share in shares)
    mine = [_stack(chunk) for chunk in shares[rank]]
    if len(mine) < longest:
        filler = _stack(next(share[0] for share in shares if share)).silenced()
        mine += [filler] * (longest - len(mine))
    return mine


def _chunks(sequences: list[TrainingSequence], token_budget: int) -> list[list[TrainingSequence]]:
    """The sequences of each micro-batch: one shape, as many as fit the budget."""
    shapes: dict[tuple[int, int], list[TrainingSequence]] = defaultdict(list)
    for sequence in sequences:
        shapes[sequence.frames, sequence.generated].append(sequence)
    chunks = []
    for members in shapes.values():
        rows = max(1, token_budget // len(members[0].ids))
        chunks += [members[first : first + rows] for first in range(0, len(members), rows)]
    return chunks


def _stack(chunk: list[TrainingSequence]) -> MicroBatch:
    behaviour = np.stack([s.behaviour for s in chunk])
    return MicroBatch(
        ids=np.stack([s.ids for s in chunk]),
        frames=chunk[0].frames,
        generated=chunk[0].generated,
        behaviour=behaviour,
        advantages=np.stack([s.advantages for s in chunk]),
        mask=np.ones_like(behaviour),
        versions=np.array([s.version for s in chunk]),
    )


def token_count(sequences: list[TrainingSequence]) -> int:
    """Number of trained tokens of all sequences: the denominator of the step's mean."""
    return sum(sequence.tokens for sequence in sequences)
