"""The questions of each trial of the reward gate: every clip degraded, or with another instruction.

whole clips      blur, static, …, wrong_actions             the whole clip, or the whole instruction
parts            every local degradation of the bench       in each third of the clip, for a third of the clips each
instructions     contradictions of the instruction          like wrong_instruction, but close to the right one
paraphrases      the instruction in other words             must not change the score
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import DEGRADATIONS, LEAST_FRAMES
from roboalign_ray.judge.bench.parts import THIRDS, seen
from roboalign_ray.judge.bench.wording import CONTRADICTIONS, PARAPHRASES

_BLUR_SHARE = 1 / 16  # Gaussian radius as a share of the frame height
_VISIBLE = 1.0  # changes that are not fully visible are not used


@dataclass(frozen=True)
class GateClip:
    """A real clip for the trials.

    Attributes:
        clip_id: name of the clip.
        frames: uint8 [T, H, W, 3].
        instruction: the task that is done in it.
        wrong_actions: uint8 [T', H, W, 3], the frames that other actions led to from the same start; None if unknown.
        group_id: group of its start state, "task/number"; clips of one task with different starts are spliced. If it is
            empty, clips with the same instruction count as one task.
    """

    clip_id: str
    frames: np.ndarray
    instruction: str
    wrong_actions: np.ndarray | None = None
    group_id: str = ""

    @property
    def task(self) -> str:
        """The task that is done in it, as far as known."""
        return self.group_id.rsplit("/", 1)[0] or self.instruction.strip().lower()


@dataclass(frozen=True)
class Question:
    """One clip and instruction for a judge to score.

    Attributes:
        frames: uint8 [T, H, W, 3].
        instruction: the instruction.
        reference: uint8 [T, H, W, 3], the real clip, for judges that use a reference.
        third: the degraded third of the clip, 0 to 2; None: the whole clip.
    """

    frames: np.ndarray
    instruction: str
    reference: np.ndarray
    third: int | None = None


def is_paraphrase(trial: str) -> bool:
    """Whether scores must not change in this trial."""
    return trial in PARAPHRASES


def may_be_left_out(trial: str) -> bool:
    """Whether a data set may lack suitable clips for the trial: words from the lists, or two starts of one task."""
    return trial in PARAPHRASES or trial in CONTRADICTIONS or "other_episode" in _needs(trial)


def trial_questions(trial: str, clips: Sequence[GateClip], seed: int = 0) -> list[Question | None]:
    """The questions of one trial, one per clip; None if the clip is not suitable.

    A clip is not suitable if it has no partner with another instruction, no record of other actions, no visible change
    in that third, or no word with a synonym or an opposite.
    """
    made: list[Question | None] = []
    for number, clip in enumerate(clips):
        rng = np.random.default_rng((seed, number))
        if trial in _FRAME_TRIALS:
            made.append(_asked(clip, _FRAME_TRIALS[trial](clip.frames, rng)))
        elif trial in _LOCAL_TRIALS:
            made.append(_locally(trial, clips, number, rng))
        else:
            made.append(_otherwise(trial, clips, number, rng))
    return made


def _needs(trial: str) -> tuple[str, ...]:
    return DEGRADATIONS[trial].needs if trial in _LOCAL_TRIALS else ()


def _asked(
    clip: GateClip, frames: np.ndarray | None = None, instruction: str | None = None, third: int | None = None
) -> Question:
    shown = clip.frames if frames is None else frames
    return Question(shown, clip.instruction if instruction is None else instruction, clip.frames, third)


def _otherwise(
    trial: str, clips: Sequence[GateClip], number: int, rng: np.random.Generator
) -> Question | None:
    """The question with another instruction or another clip."""
    clip = clips[number]
    if trial == "wrong_actions":
        return None if clip.wrong_actions is None else _asked(clip, clip.wrong_actions)
    if trial in PARAPHRASES or trial in CONTRADICTIONS:
        instruction = (PARAPHRASES | CONTRADICTIONS)[trial](clip.instruction, rng, True)
        return (
            None
            if instruction is None or instruction == clip.instruction
            else _asked(clip, instruction=instruction)
        )
    other = _partner(clips, number)
    if other is None:
        return None
    return (
        _asked(clip, other.frames) if trial == "wrong_clip" else _asked(clip, instruction=other.instruction)
    )


def _locally(trial: str, clips: Sequence[GateClip], number: int, rng: np.random.Generator) -> Question | None:
    clip, third, rule = clips[number], number % THIRDS, DEGRADATIONS[trial]
    scene, episode = _other_task(clips, number), _other_start(clips, number)
    material = Material(other_scene=scene, other_episode=episode, third=third)
    if len(clip.frames) < LEAST_FRAMES or not rule.possible(material):
        return None
    degraded = rule.rule(clip.frames, 1.0, rng, material)
    return _asked(clip, degraded, third=third) if seen(clip.frames, degraded) >= _VISIBLE else None


def _following(clips: Sequence[GateClip], number: int) -> list[GateClip]:
    return [clips[(number + n) % len(clips)] for n in range(1, len(clips))]


def _partner(clips: Sequence[GateClip], number: int) -> GateClip | None:
    """The next clip with another instruction."""
    instruction = clips[number].instruction.strip().lower()
    return next(
        (clip for clip in _following(clips, number) if clip.instruction.strip().lower() != instruction), None
    )


def _other_task(clips: Sequence[GateClip], number: int) -> np.ndarray | None:
    own = clips[number].task
    return next((clip.frames for clip in _following(clips, number) if clip.task != own), None)


def _other_start(clips: Sequence[GateClip], number: int) -> np.ndarray | None:
    own = clips[number]
    return next(
        (
            clip.frames
            for clip in _following(clips, number)
            if clip.task == own.task and (not own.group_id or clip.group_id != own.group_id)
        ),
        None,
    )


def _blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius = ImageFilter.GaussianBlur(max(1.0, frames.shape[1] * _BLUR_SHARE))
    return np.stack([np.asarray(Image.fromarray(frame).filter(radius)) for frame in frames])


def _mean(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mean = np.rint(frames.mean(axis=0, dtype=np.float64)).astype(np.uint8)
    return np.broadcast_to(mean, frames.shape)


def _shuffled(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(frames))
    if (order == np.arange(len(order))).all():
        order = np.roll(order, 1)
    return frames[order]


_FRAME_TRIALS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blur": _blurred,
    "static": lambda frames, rng: np.broadcast_to(frames[:1], frames.shape),
    "temporal_mean": _mean,
    "shuffle": _shuffled,
    "reverse": lambda frames, rng: frames[::-1],
    "random": lambda frames, rng: rng.integers(0, 256, frames.shape, dtype=np.uint8),
}
_LOCAL_TRIALS = tuple(name for name, rule in DEGRADATIONS.items() if rule.local)
