"""What a judge is asked in each trial of the reward gate: every clip spoiled, or asked for otherwise.

whole clips      blur, static, …, wrong_actions             all of the clip, or all that was asked
parts            every local degradation of the bench       at each third of the clip, a third of the clips each
instructions     contradictions of the clip's own sentence  as wrong_instruction, but close to what is right
paraphrases      the same in other words                    must change nothing
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

_BLUR_SHARE = 1 / 16  # Gaussian radius as a share of the frame's height
_VISIBLE = 1.0  # what cannot be seen in full is not tried


@dataclass(frozen=True)
class GateClip:
    """A real clip that a judge is tried on.

    Attributes:
        clip_id: names it.
        frames: uint8 [T, H, W, 3].
        instruction: what is done in it.
        wrong_actions: uint8 [T', H, W, 3], what other actions led to from the same start; None where unknown.
        group_id: of its start state, "task/number"; clips of one task and different starts are cut together. Empty:
            clips with one instruction are of one task.
    """

    clip_id: str
    frames: np.ndarray
    instruction: str
    wrong_actions: np.ndarray | None = None
    group_id: str = ""

    @property
    def task(self) -> str:
        """What is done in it, as far as that is known."""
        return self.group_id.rsplit("/", 1)[0] or self.instruction.strip().lower()


@dataclass(frozen=True)
class Question:
    """What a judge is asked to score.

    Attributes:
        frames: uint8 [T, H, W, 3].
        instruction: the sentence.
        reference: uint8 [T, H, W, 3], the real clip, for judges that compare.
        third: of the clip that is spoiled, 0 to 2; None: all of it.
    """

    frames: np.ndarray
    instruction: str
    reference: np.ndarray
    third: int | None = None


def is_paraphrase(trial: str) -> bool:
    """Whether scores must stay as they are."""
    return trial in PARAPHRASES


def may_be_left_out(trial: str) -> bool:
    """Whether clips may lack what the trial needs without fault: words that the lists know, two starts of one task."""
    return trial in PARAPHRASES or trial in CONTRADICTIONS or "other_episode" in _needs(trial)


def spoil(trial: str, clips: Sequence[GateClip], seed: int = 0) -> list[Question | None]:
    """Every clip in one trial; None where that clip cannot be tried: no partner with another instruction, no record of
    other actions, nothing to be seen in that third, no word that has a synonym or a contrary."""
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
    """Asked for otherwise, or shown another clip."""
    clip = clips[number]
    if trial == "wrong_actions":
        return None if clip.wrong_actions is None else _asked(clip, clip.wrong_actions)
    if trial in PARAPHRASES or trial in CONTRADICTIONS:
        told = (PARAPHRASES | CONTRADICTIONS)[trial](clip.instruction, rng, True)
        return None if told is None or told == clip.instruction else _asked(clip, instruction=told)
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
    spoiled = rule.rule(clip.frames, 1.0, rng, material)
    return _asked(clip, spoiled, third=third) if seen(clip.frames, spoiled) >= _VISIBLE else None


def _following(clips: Sequence[GateClip], number: int) -> list[GateClip]:
    return [clips[(number + n) % len(clips)] for n in range(1, len(clips))]


def _partner(clips: Sequence[GateClip], number: int) -> GateClip | None:
    """The next clip with another instruction."""
    told = clips[number].instruction.strip().lower()
    return next(
        (clip for clip in _following(clips, number) if clip.instruction.strip().lower() != told), None
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
