"""Makes a judged pair from a proposal: cuts the clip, collects its reference data, degrades it, and labels it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from roboalign_ray.config.bench import BenchConfig
from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.splits import split_of
from roboalign_ray.episodes.store import EpisodeStore, check_action_kinds
from roboalign_ray.episodes.windows import Window, WindowSpec, cut_window
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import DEGRADATIONS, degrade
from roboalign_ray.judge.bench.masks import scene_masks
from roboalign_ray.judge.bench.plan import EpisodeIndex, Proposal
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.privileged.measure import (
    ClipLabels,
    PrivilegedScore,
    PrivilegedTeacher,
    Reference,
    describe,
    simulator_scores,
)
from roboalign_ray.judge.rubric import maxima

HELD_OUT_FRACTION = 0.1
_EPISODES_KEPT = 8
_DIFFERENT = 2.0  # two variants with a smaller mean difference (grey levels) count as equal


@dataclass(frozen=True)
class SourceClip:
    """A real clip and its reference data.

    Attributes:
        window: frames, actions and instruction.
        fps: frame rate of the clip, after the stride.
        group_id: group of its episode.
        score: points from the simulator's labels, or full points for a recorded demonstration.
        reference: reference data for the privileged teacher; None if a part of `score` is unknown.
        annotator: the source of `score`.
        done: first frame of the clip in which the task counts as done, 0 if it was done before the clip; None if it is
            not done by the end, or unknown.
    """

    window: Window
    fps: float
    group_id: str
    score: PrivilegedScore
    reference: Reference | None
    annotator: str
    done: int | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """The position of the clip in its episode, and the frame in which the task is done."""
        return {"episode_id": self.window.episode_id, "start": self.window.start, "done": self.done}


class PairMaker:
    """Makes pairs from the episodes of a store.

    Args:
        store: the episodes.
        spec: length, stride, view and size of a clip.
        config: seed and thresholds.
        held_out_fraction: share of groups held out; material from other clips comes from the same side of the split.

    Raises:
        UserError: the spec skips frames, but the kinds of the actions are unknown.
    """

    def __init__(
        self,
        store: EpisodeStore,
        spec: WindowSpec,
        config: BenchConfig,
        *,
        held_out_fraction: float = HELD_OUT_FRACTION,
    ) -> None:
        check_action_kinds(store, spec.stride)
        self.store, self.spec, self.config = store, spec, config
        self._splits = [split_of(group, held_out_fraction) for group in store.group_ids]
        self.teacher = PrivilegedTeacher(config.privileged)
        self._episode = lru_cache(_EPISODES_KEPT)(store.read)
        self._members: dict[str, list[int]] = {}
        for number, group in enumerate(store.group_ids):
            self._members.setdefault(group, []).append(number)

    def index(self) -> EpisodeIndex:
        """The index of the store's episodes, for the planner."""
        return EpisodeIndex(self.store.ids, self.store.group_ids, self.store.lengths, self.store.successes())

    def source(self, episode: int | str, start: int, *, frames: int | None = None) -> SourceClip:
        """The real clip of an episode from frame `start` on.

        Args:
            frames: length of the clip; None takes the spec's length.

        Raises:
            UserError: there is no such episode.
            EpisodeError: the episode cannot be decoded, or is too short.
        """
        found = self._episode(episode)
        spec = replace(self.spec, frames=frames) if frames else self.spec
        window = cut_window(found, spec, start, context=start)
        picked = slice(start, start + spec.span, spec.stride)
        labels = {name: values[picked] for name, values in found.outcome.privileged.items()}
        score, annotator = self._real_score(found, labels, start + spec.span)
        points = score.scores()
        reference = None
        if not isinstance(points, Failed):
            masks = scene_masks(window.frames, labels or None, found.provenance.get("camera"))
            contact = labels.get("contact")
            reference = Reference(window.frames, points, masks.object, masks.gripper, contact)
        fps = found.fps / self.spec.stride
        done = self._done(found, start, start + spec.span)
        return SourceClip(window, fps, found.group_id, score, reference, annotator, done)

    def _done(self, episode: Episode, start: int, end: int) -> int | None:
        flags = episode.outcome.success_per_frame
        if flags is None or not flags[:end].any():
            return None
        return max(0, -(-(int(np.argmax(flags)) - start) // self.spec.stride))

    def _real_score(
        self, episode: Episode, labels: Mapping[str, np.ndarray], end: int
    ) -> tuple[PrivilegedScore, str]:
        outcome = episode.outcome
        if labels:
            per_frame = outcome.success_per_frame
            succeeded = outcome.success if per_frame is None else bool(per_frame[:end].any())
            return simulator_scores(ClipLabels(succeeded, labels), self.config.privileged), "simulator"
        if outcome.success is False:
            reason = Failed("a recorded failure without labels of its progress", "unmeasured")
            return PrivilegedScore((reason,) * 6), "recorded"
        # A recorded demonstration gets full points unless its source marks it as failed (RoboAlign-R1).
        return PrivilegedScore(tuple(map(float, maxima()))), "recorded"

    def pair(self, proposal: Proposal) -> JudgedPair | Failed:
        """The pair of a real, counterfactual or degraded proposal; `Failed` if it cannot be made or labelled."""
        try:
            source = self.source(proposal.episode, proposal.start)
        except EpisodeError as error:
            return Failed(error.line(), "episode")
        points = source.score.scores()
        if isinstance(points, Failed):
            return points
        window = source.window
        if not window.instruction.strip():
            return Failed("the episode has no instruction", "episode")
        if proposal.family == "degraded":
            return self._degraded(proposal, source, points)
        variant = window.episode_id.rsplit("/", 1)[-1]
        kind = "real" if proposal.family == "real" else f"counterfactual/{variant}"
        about = source.provenance | {"measurements": dict(source.score.measurements)}
        return self.judged(proposal, source, kind, window.frames, points, source.annotator, about)

    def judged(
        self,
        proposal: Proposal,
        source: SourceClip,
        kind: str,
        frames: np.ndarray,
        points: np.ndarray,
        annotator: str,
        provenance: Mapping[str, Any],
        instruction: str | None = None,
    ) -> JudgedPair:
        """A pair named after its proposal."""
        return JudgedPair(
            pair_id=f"{kind}/{source.window.episode_id}@{source.window.start}/{proposal.position}",
            group_id=source.group_id,
            frames=frames,
            fps=source.fps,
            instruction=instruction or source.window.instruction,
            scores=points,
            annotator=annotator,
            kind=kind,
            provenance=provenance,
        )

    def generated(self, source: SourceClip, frames: np.ndarray) -> tuple[np.ndarray, dict[str, Any]] | Failed:
        """Points [6] of a generated clip by the privileged teacher, and its measurements."""
        if source.reference is None:
            missing = source.score.scores()
            return missing if isinstance(missing, Failed) else Failed("no reference", "unmeasured")
        score = self.teacher.score(frames, source.reference)
        points = score.scores()
        if isinstance(points, Failed):
            return points
        about = {name: round(value, 4) for name, value in score.measurements.items()}
        return points, source.provenance | {"measurements": about, "points": describe(score)}

    def _degraded(self, proposal: Proposal, source: SourceClip, points: np.ndarray) -> JudgedPair | Failed:
        rng = np.random.default_rng([self.config.seed, 7, proposal.position])
        material = self.material(source, rng, DEGRADATIONS[proposal.name].needs)
        if not DEGRADATIONS[proposal.name].possible(material):
            return Failed(f"{proposal.name}: this clip lacks the required material", "material")
        window = source.window
        degraded = degrade(
            proposal.name, window.frames, window.instruction, points, proposal.strength, rng, material
        )
        about = source.provenance | {"proposal": asdict(proposal), "true_instruction": window.instruction}
        return self.judged(
            proposal,
            source,
            f"degraded/{proposal.name}",
            degraded.frames,
            degraded.scores,
            "degradation",
            about,
            degraded.instruction,
        )

    def material(self, source: SourceClip, rng: np.random.Generator, needs: tuple[str, ...]) -> Material:
        """The material for `needs`, as far as available: masks, other frames, other clips, another instruction."""
        reference = source.reference
        return Material(
            object_mask=None if reference is None else reference.object_mask,
            gripper_mask=None if reference is None else reference.gripper_mask,
            other_frames=self._other_frames(source, rng) if "other_frames" in needs else None,
            other_instruction=self._other_sentence(source, rng) if "other_instruction" in needs else None,
            done=source.done,
            other_scene=self._other_clip(source, rng, same_task=False) if "other_scene" in needs else None,
            other_episode=self._other_clip(source, rng, same_task=True) if "other_episode" in needs else None,
        )

    def _other_frames(self, source: SourceClip, rng: np.random.Generator) -> np.ndarray | None:
        """The frames that other actions led to, unless these actions also solved the task."""
        window = source.window
        others = [n for n in self._members[source.group_id] if self.store.ids[n] != window.episode_id]
        for number in rng.permutation(np.array(others, dtype=int)):
            if self.store.lengths[number] < window.start + self.spec.span:
                continue
            other = self._episode(int(number))
            if self._done(other, window.start, window.start + self.spec.span) is not None:
                continue
            frames = cut_window(other, self.spec, window.start, window.start).frames
            if np.abs(frames[-1].astype(float) - window.frames[-1]).mean() > _DIFFERENT:
                return frames
        return None

    def _other_clip(
        self, source: SourceClip, rng: np.random.Generator, *, same_task: bool
    ) -> np.ndarray | None:
        """A clip of another task, or of the same task from another start, on the same side of the split."""
        split = self._splits[self._members[source.group_id][0]]
        others = [
            number
            for number, group in enumerate(self.store.group_ids)
            if group != source.group_id
            and (_task(group) == _task(source.group_id)) == same_task
            and self._splits[number] == split
            and self.store.lengths[number] >= self.spec.span
        ]
        if not others:
            return None
        number = int(rng.choice(others))
        start = int(rng.integers(self.store.lengths[number] - self.spec.span + 1))
        return cut_window(self._episode(number), self.spec, start, start).frames

    def _other_sentence(self, source: SourceClip, rng: np.random.Generator) -> str | None:
        """An instruction of another task: from a group whose name differs before its last part."""
        task = _task(source.group_id)
        sentences = sorted(
            {
                sentence
                for sentence, group in zip(self.store.instructions, self.store.group_ids, strict=True)
                if _task(group) != task and sentence.strip()
            }
            - {source.window.instruction}
        )
        return str(rng.choice(sentences)) if sentences else None


def _task(group_id: str) -> str:
    """A group's name without its last part, the number of the start state."""
    return group_id.rsplit("/", 1)[0]
