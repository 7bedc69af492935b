"""The diffusion world model's state of a batch of rollouts: an immutable value that can be stepped, branched and saved.

    position   0 … given-1 | given … origin-1 | origin … total-1
               given frames, generated before     generated since,
               the last branch: one per group     one per row

Rows of a group are adjacent: row = group * samples + sample. Positions count all frames, so the first generated one is
at `given`. The action from position t to t+1 stands at `actions[:, t]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.packed_frames import PackedFrames
from roboalign_ray.world_model.diffusion.rollout import DiffusionPayload, DiffusionSegment, Sampling
from roboalign_ray.world_model.prompt_checks import check_branch
from roboalign_ray.world_model.protocol import Rollout, RolloutCost


@dataclass(frozen=True)
class Weights:
    """A network and the version of its weights."""

    network: Denoiser
    version: int


@dataclass(frozen=True)
class SegmentStart:
    """Where a segment begins and what it looks back to; positions.

    Attributes:
        first: of its first generated frame.
        oldest: of the oldest frame that its history reaches back to.
        reference: of its reference frame; None: the prompt's context.
        version: of the weights.
    """

    first: int
    oldest: int
    reference: int | None
    version: int


@dataclass(frozen=True)
class DiffusionState:
    """A batch of rollouts at one moment; see above.

    Attributes:
        prompts: (id, instruction) per group.
        seeds: per group, equally many.
        given: frames that the prompts gave.
        context: uint8 [groups, V, H, W, 3].
        known: uint8 [groups, origin, V, H, W, 3], what the samples of a group share.
        clips: uint8 [rows, n, V, H, W, 3] each, generated since.
        actions: float32 [rows, total - 1, A] in the units of the episodes.
        own_actions: whether samples of a group were given different actions since the last branch.
        segments: so far; the last one may be under way.
        weights: of the last segment; None before the first frame and where a state was loaded between segments.
        begin_seconds: wall time of `begin`; counted for the first frame.
        seconds: per generated frame, wall time of the batch.
    """

    prompts: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[int, ...], ...]
    given: int
    context: np.ndarray
    known: np.ndarray
    clips: tuple[np.ndarray, ...]
    actions: np.ndarray
    own_actions: bool
    segments: tuple[SegmentStart, ...] = ()
    weights: Weights | None = None
    begin_seconds: float = 0.0
    seconds: tuple[float, ...] = ()

    @property
    def samples(self) -> int:
        """Rows per group."""
        return len(self.seeds[0])

    @property
    def rows(self) -> int:
        """All samples of all groups."""
        return len(self.seeds) * self.samples

    @property
    def origin(self) -> int:
        """Frames that the samples of a group share; the seeds hold from here on."""
        return self.known.shape[1]

    @property
    def total(self) -> int:
        """Given and generated frames."""
        return self.actions.shape[1] + 1

    @property
    def generated(self) -> int:
        """Generated frames."""
        return self.total - self.given

    def shared(self, groups: np.ndarray, first: int) -> np.ndarray:
        """Frames from position `first` to the origin of some groups [k]: uint8 [k, n, V, H, W, 3]."""
        return self.known[groups, first:]

    def frames(self, rows: np.ndarray, first: int) -> np.ndarray:
        """All frames from position `first` on of some rows [k]: uint8 [k, n, V, H, W, 3]."""
        parts = [self.shared(rows // self.samples, first)] if first < self.origin else []
        end = self.total
        own: list[np.ndarray] = []
        for clip in reversed(self.clips):
            if end <= first:
                break
            begin = end - clip.shape[1]
            own.append(clip[rows, max(0, first - begin) :])
            end = begin
        return np.concatenate([*parts, *reversed(own)], axis=1)

    def references(self, rows: np.ndarray) -> np.ndarray:
        """Reference frames of the last segment for some rows [k]: uint8 [k, V, H, W, 3]."""
        at = self.segments[-1].reference
        return self.context[rows // self.samples] if at is None else self.frames(rows, at)[:, 0]

    def branch(self, rows: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> DiffusionState:
        """New groups behind chosen rows; see `WorldModel.branch`.

        Raises:
            UserError: a row is not there, or seeds and rows do not match.
        """
        check_branch(rows, seeds, self.rows)
        chosen = np.asarray(rows)
        groups = chosen // self.samples
        return replace(
            self,
            prompts=tuple(self.prompts[group] for group in groups),
            seeds=tuple(tuple(own) for own in seeds),
            context=self.context[groups],
            known=self.frames(chosen, 0),
            clips=(),
            actions=np.repeat(self.actions[chosen], len(seeds[0]), axis=0),
            own_actions=False,
        )

    def rollouts(self, reach: int, sampling: Sampling) -> list[Rollout]:
        """What was generated since the last branch, one rollout per group.

        Args:
            reach: frames that the network looks back over at most, for its history or its actions.

        Raises:
            UserError: nothing was.
        """
        if not self.clips:
            raise UserError("nothing is generated yet", where="rollouts", remedy="step the state first")
        generated = np.concatenate(self.clips, axis=1)
        start = self.origin - self.given
        held = (self.known.nbytes + generated.nbytes) // len(self.prompts)
        return [
            Rollout(
                prompt_id=prompt_id,
                instruction=instruction,
                seeds=self.seeds[group],
                payload=self._payload(group, generated, min(self.origin, reach), sampling),
                cost=RolloutCost(np.array(self.seconds[start:]), cache_bytes=held),
                start=start,
            )
            for group, (prompt_id, instruction) in enumerate(self.prompts)
        ]

    def _payload(self, group: int, generated: np.ndarray, given: int, sampling: Sampling) -> DiffusionPayload:
        """A group's payload with so many given frames: those before the branch, which all its samples share."""
        rows = slice(group * self.samples, (group + 1) * self.samples)
        ends = [*(segment.first for segment in self.segments[1:]), self.total]
        parts = [(s, end) for s, end in zip(self.segments, ends, strict=True) if end > self.origin]
        at = parts[0][0].reference
        context = self.context[group] if at is None else self.known[group, at]
        known = self.known[group, self.origin - given :]
        actions = self.actions[rows, self.origin - given :]
        segments = tuple(
            DiffusionSegment(
                frames=end - max(self.origin, segment.first),
                version=segment.version,
                oldest=max(segment.oldest - self.origin, -given),
                reference=None
                if segment.reference is None or number == 0
                else segment.reference - self.origin,
            )
            for number, (segment, end) in enumerate(parts)
        )
        return DiffusionPayload(
            segments=segments,
            known=PackedFrames.of(np.concatenate([context[None], known])[None]),
            actions=np.ascontiguousarray(actions if self.own_actions else actions[0]),
            packed=PackedFrames.of(generated[rows], known[-1]),
            sampling=sampling,
        )
