"""Degradations: rules that spoil a real clip, and the points that each of them costs.

Every rule is a pure function of (frames, strength in [0, 1], generator, material); strength 0 changes nothing. What it
costs stands in `TABLE`: the share of each dimension's points that is lost at strength 1; in between, the loss grows in
proportion to the strength. A clip that had no points in a dimension can lose none there.

Rules of `local` spoil a third of a clip or less. They cost the same however short the part is, since one moment that
cannot be makes a recording no evidence; but only as far as it can be seen (`parts.seen`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench import corruptions as spoiling
from roboalign_ray.judge.bench import local
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.parts import seen
from roboalign_ray.judge.rubric import check_scores

LEAST_FRAMES = 4

Rule = Callable[[np.ndarray, float, np.random.Generator, Material], np.ndarray]


@dataclass(frozen=True)
class Degradation:
    """One rule.

    Attributes:
        name: as it stands in a pair's kind, "degraded/<name>".
        rule: frames uint8 [T, H, W, 3] to frames uint8 [T', H, W, 3].
        lost: shares of the six dimensions lost at strength 1, in the rubric's order.
        needs: what of the material it cannot do without.
        graded: False: any strength above 0 costs all of it.
        local: a part of the clip alone is spoiled; costs all of it, as far as it can be seen.
    """

    name: str
    rule: Rule
    lost: tuple[float, float, float, float, float, float]
    needs: tuple[str, ...] = ()
    graded: bool = True
    local: bool = False

    def possible(self, material: Material) -> bool:
        """Whether the material has what it needs."""
        return all(getattr(material, name) is not None for name in self.needs)

    def scores(self, scores: np.ndarray, strength: float, visible: float = 1.0) -> np.ndarray:
        """Points float32 [6] of a clip with these points [6] once it is spoiled this much; `visible`, 0 to 1, is how
        well that can be seen."""
        weight = visible * (strength if self.graded else float(strength > 0))
        return check_scores(scores) * (1 - weight * np.array(self.lost, dtype=np.float32))


# [ours] Columns: instruction, success, action-outcome, temporal, contact, physics. The reasoning stands above each row.
WHOLE: tuple[Degradation, ...] = (
    # What happens can still be guessed, but edges, hence touching and solidity, cannot be seen, and nothing is proven.
    Degradation("blur", spoiling.blur, (0.3, 0.35, 0.4, 0.4, 0.8, 0.8)),
    # Independent grain in each frame: light is not steady; the action remains readable.
    Degradation("noise", spoiling.noise, (0.05, 0.05, 0.1, 0.6, 0.25, 0.5)),
    # Nothing happens from a moment on; all the clip at strength 1, so neither task nor commands are carried out.
    # A still picture breaks no physics and shows no false contact, but proves neither.
    Degradation("freeze", spoiling.freeze, (0.9, 1.0, 1.0, 0.9, 0.5, 0.4)),
    # Stutter: frames repeat, then jump to catch up. The end is still reached.
    Degradation("drop_frames", spoiling.drop_frames, (0.1, 0.05, 0.3, 0.8, 0.15, 0.3)),
    # Out of order: no frame follows from the one before; the outcome may not even be last.
    Degradation("shuffle", spoiling.shuffle, (0.5, 0.6, 0.9, 1.0, 0.7, 0.8)),
    # The end runs backwards: done becomes undone, effects precede causes; no cut at strength 1, but still no real take.
    Degradation("reverse", spoiling.reverse, (0.7, 1.0, 0.8, 0.5, 0.5, 0.7)),
    # Up to three times as fast, then standing still: the outcome is right, the pace is not.
    Degradation("speed_up", spoiling.speed_up, (0.05, 0.0, 0.4, 0.5, 0.2, 0.6)),
    # Down to a quarter of the speed: the end is never reached.
    Degradation("slow_down", spoiling.slow_down, (0.4, 0.8, 0.5, 0.3, 0.1, 0.4)),
    # Everything melts more and more: identity and solidity go, the action less.
    Degradation("texture_drift", spoiling.texture_drift, (0.1, 0.1, 0.2, 0.8, 0.4, 0.9)),
    # The light jumps from frame to frame; what happens is unchanged.
    Degradation("flicker", spoiling.flicker, (0.0, 0.0, 0.05, 0.9, 0.05, 0.25)),
    # The thing to manipulate is gone from a moment on: no outcome, contact with nothing, matter lost.
    Degradation("object_vanish", spoiling.object_vanish, (0.6, 0.9, 0.7, 0.8, 0.9, 0.9), ("object_mask",)),
    # A second one appears: matter from nothing; the true one still does what it did.
    Degradation(
        "object_duplicate", spoiling.object_duplicate, (0.2, 0.2, 0.3, 0.7, 0.4, 0.9), ("object_mask",)
    ),
    # No hand: whatever moves, moves untouched.
    Degradation("gripper_erased", spoiling.gripper_erased, (0.7, 0.7, 0.9, 0.8, 1.0, 0.8), ("gripper_mask",)),
    # A faultless video of another task.
    Degradation(
        "wrong_instruction",
        spoiling.unchanged,
        (1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
        ("other_instruction",),
        graded=False,
    ),
    # From a moment on the arm follows other commands than those given. At strength 1 there is no cut to see: a judge
    # that is not told the commands can only know it by the outcome.
    Degradation("wrong_actions", spoiling.wrong_actions, (0.6, 0.7, 1.0, 0.3, 0.1, 0.15), ("other_frames",)),
    # Ends before it is done: what is shown is right, what was asked is not shown.
    Degradation("truncated", spoiling.truncated, (0.5, 1.0, 0.1, 0.0, 0.1, 0.0), graded=False),
    # Where there is no picture, nothing is right.
    Degradation("static_noise", spoiling.static_noise, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    # The object is somewhere else from one frame to the next, untouched.
    Degradation("teleport", spoiling.teleport, (0.3, 0.7, 0.8, 0.9, 0.8, 0.9), ("object_mask",)),
    # Every frame is mixed with the clip's mean: ghosts that touch without touching; at strength 1 nothing moves.
    Degradation("ghosting", spoiling.ghosting, (0.8, 0.9, 0.8, 0.6, 0.8, 0.9)),
    # The beginning comes again and again: a cut each time, and no progress.
    Degradation("loop", spoiling.loop, (0.5, 0.9, 0.6, 0.7, 0.3, 0.5)),
)

_SCENE, _EPISODE = ("other_scene",), ("other_episode",)


def _local(
    rule: Rule, lost: tuple[float, float, float, float, float, float], needs: tuple[str, ...] = ()
) -> Degradation:
    return Degradation(rule.__name__, rule, lost, needs, graded=False, local=True)


# [ours] Columns as above. What breaks off is worse than what comes back; a cut proves nothing of what follows.
LOCAL: tuple[Degradation, ...] = (
    # What follows the cut is another recording: it shows neither task nor outcome of this one.
    _local(local.scene_cut, (0.6, 0.8, 0.8, 1.0, 0.6, 0.9), _SCENE),
    _local(local.episode_cut, (0.5, 0.7, 0.7, 0.9, 0.5, 0.8), _EPISODE),
    # The recording comes back, but what happened meanwhile is not known.
    _local(local.scene_inserted, (0.4, 0.5, 0.6, 1.0, 0.5, 0.8), _SCENE),
    _local(local.episode_inserted, (0.35, 0.45, 0.5, 0.9, 0.4, 0.75), _EPISODE),
    _local(local.double_exposure, (0.4, 0.5, 0.5, 0.9, 0.6, 0.8), _SCENE),
    _local(local.split_picture, (0.4, 0.5, 0.6, 0.9, 0.6, 0.85), _SCENE),
    _local(local.blank, (0.4, 0.5, 0.6, 1.0, 0.6, 0.8)),
    # Effects precede their causes; where the end runs backwards, done becomes undone.
    _local(local.local_reverse, (0.6, 0.8, 0.7, 0.9, 0.5, 0.7)),
    _local(local.reverse_from, (0.6, 0.9, 0.7, 0.7, 0.5, 0.7)),
    _local(local.boomerang, (0.7, 1.0, 0.8, 0.5, 0.5, 0.7)),
    _local(local.local_shuffle, (0.5, 0.6, 0.8, 1.0, 0.7, 0.8)),
    _local(local.jump_back, (0.5, 0.9, 0.6, 0.9, 0.5, 0.6)),
    # Nothing that has a mass stands still and is elsewhere at once; what happened meanwhile is left out.
    _local(local.local_freeze, (0.5, 0.6, 0.7, 0.9, 0.5, 0.6)),
    _local(local.stutter, (0.4, 0.5, 0.6, 0.9, 0.5, 0.6)),
    _local(local.skip, (0.5, 0.6, 0.7, 0.9, 0.5, 0.7)),
    _local(local.rush, (0.4, 0.5, 0.6, 0.9, 0.5, 0.7)),
    # What happens can still be followed before and after, not in between.
    _local(local.light_jump, (0.2, 0.2, 0.4, 1.0, 0.3, 0.6)),
    _local(local.colour_jump, (0.2, 0.25, 0.4, 1.0, 0.35, 0.7)),
    _local(local.local_blur, (0.25, 0.3, 0.4, 0.9, 0.5, 0.7)),
    _local(local.local_noise, (0.25, 0.3, 0.4, 1.0, 0.5, 0.7)),
    _local(local.pixelated, (0.3, 0.3, 0.4, 0.9, 0.5, 0.75)),
    _local(local.occluded, (0.4, 0.5, 0.5, 0.9, 0.6, 0.7)),
    _local(local.view_jump, (0.4, 0.5, 0.7, 1.0, 0.6, 0.85)),
    # Arm and object are gone, or elsewhere, and back again.
    _local(local.things_vanish, (0.5, 0.7, 0.7, 0.9, 0.8, 0.9)),
    _local(local.things_jump, (0.35, 0.6, 0.7, 0.9, 0.7, 0.9)),
)

TABLE: tuple[Degradation, ...] = (*WHOLE, *LOCAL)
DEGRADATIONS: dict[str, Degradation] = {degradation.name: degradation for degradation in TABLE}


@dataclass(frozen=True)
class Degraded:
    """A spoiled clip: frames uint8 [T, H, W, 3], the sentence it is judged against, points float32 [6]."""

    frames: np.ndarray
    instruction: str
    scores: np.ndarray


def degrade(
    name: str,
    frames: np.ndarray,
    instruction: str,
    scores: np.ndarray,
    strength: float,
    rng: np.random.Generator,
    material: Material,
) -> Degraded:
    """Spoil a clip.

    Args:
        name: one of `DEGRADATIONS`.
        frames: uint8 [T, H, W, 3].
        instruction, scores: of the real clip, points [6].
        strength: 0 (nothing) to 1.
        rng: draws moments, places and grain.
        material: masks and other clips.

    Raises:
        UserError: unknown name, strength outside [0, 1], a clip of fewer than four frames, or missing material.
    """
    if name not in DEGRADATIONS:
        raise UserError(f"unknown degradation '{name}'", remedy=f"one of: {', '.join(DEGRADATIONS)}")
    degradation = DEGRADATIONS[name]
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength} is not within 0 to 1", where=name)
    if len(frames) < LEAST_FRAMES:
        raise UserError(f"a clip of {len(frames)} frames is too short", where=name)
    if not degradation.possible(material):
        raise UserError(f"needs {' and '.join(degradation.needs)}", where=name)
    spoiled = frames.copy() if strength == 0 else degradation.rule(frames, strength, rng, material)
    asked = instruction
    if "other_instruction" in degradation.needs and strength > 0:
        asked = str(material.other_instruction)
    visible = seen(frames, spoiled) if degradation.local else 1.0
    return Degraded(spoiled, asked, degradation.scores(scores, strength, visible))
