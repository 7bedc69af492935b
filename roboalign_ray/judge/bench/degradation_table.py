"""Degradations: rules that degrade a real clip, and the points that each of them costs.

Every rule is a pure function of (frames, strength in [0, 1], generator, material); strength 0 changes nothing. `TABLE`
gives its cost: the share of each dimension's points that is lost at strength 1. Below strength 1 the loss is
proportional to the strength. A clip without points in a dimension cannot lose points there.

Rules of `local` degrade at most a third of a clip. Their cost does not depend on the length of that part, since one
impossible moment makes a recording useless as evidence. The cost is scaled by how visible the change is (`parts.seen`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench import corruptions, local
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.parts import seen
from roboalign_ray.judge.rubric import check_scores

LEAST_FRAMES = 4

Rule = Callable[[np.ndarray, float, np.random.Generator, Material], np.ndarray]


@dataclass(frozen=True)
class Degradation:
    """One rule.

    Attributes:
        name: the name in a pair's kind, "degraded/<name>".
        rule: frames uint8 [T, H, W, 3] to frames uint8 [T', H, W, 3].
        lost: shares of the six dimensions lost at strength 1, in the rubric's order.
        needs: fields of the material that it requires.
        graded: whether the cost grows with the strength; if False, any strength above 0 has the full cost.
        local: whether it degrades only a part of the clip; then it has the full cost, scaled by visibility.
    """

    name: str
    rule: Rule
    lost: tuple[float, float, float, float, float, float]
    needs: tuple[str, ...] = ()
    graded: bool = True
    local: bool = False

    def possible(self, material: Material) -> bool:
        """Whether the material has all required fields."""
        return all(getattr(material, name) is not None for name in self.needs)

    def scores(self, scores: np.ndarray, strength: float, visible: float = 1.0) -> np.ndarray:
        """Points float32 [6] of a degraded clip that had these points [6].

        Args:
            scores: points of the real clip.
            strength: 0 to 1.
            visible: visibility of the change, 0 to 1.
        """
        weight = visible * (strength if self.graded else float(strength > 0))
        return check_scores(scores) * (1 - weight * np.array(self.lost, dtype=np.float32))


# [ours] Columns: instruction, success, action-outcome, temporal, contact, physics. The comment above each row gives the
# reasoning.
WHOLE: tuple[Degradation, ...] = (
    # The events can still be guessed, but edges, and so contact and solidity, are not visible, and nothing is proven.
    Degradation("blur", corruptions.blur, (0.3, 0.35, 0.4, 0.4, 0.8, 0.8)),
    # Independent noise in each frame: the light is not constant; the action remains visible.
    Degradation("noise", corruptions.noise, (0.05, 0.05, 0.1, 0.6, 0.25, 0.5)),
    # Nothing happens after a moment; at strength 1 in the whole clip, so neither task nor commands are carried out.
    # A still image violates no physics and shows no false contact, but is no evidence for either.
    Degradation("freeze", corruptions.freeze, (0.9, 1.0, 1.0, 0.9, 0.5, 0.4)),
    # Stutter: frames repeat, then jump to catch up. The end is still reached.
    Degradation("drop_frames", corruptions.drop_frames, (0.1, 0.05, 0.3, 0.8, 0.15, 0.3)),
    # Out of order: no frame follows from the one before; the outcome may not even be last.
    Degradation("shuffle", corruptions.shuffle, (0.5, 0.6, 0.9, 1.0, 0.7, 0.8)),
    # The end runs backwards: the task is undone and effects precede causes. At strength 1 there is no cut, but the
    # recording is still not real.
    Degradation("reverse", corruptions.reverse, (0.7, 1.0, 0.8, 0.5, 0.5, 0.7)),
    # Up to three times as fast, then still: the outcome is right, the speed is not.
    Degradation("speed_up", corruptions.speed_up, (0.05, 0.0, 0.4, 0.5, 0.2, 0.6)),
    # Down to a quarter of the speed: the end is not reached.
    Degradation("slow_down", corruptions.slow_down, (0.4, 0.8, 0.5, 0.3, 0.1, 0.4)),
    # Everything deforms increasingly: identity and solidity are lost, the action less so.
    Degradation("texture_drift", corruptions.texture_drift, (0.1, 0.1, 0.2, 0.8, 0.4, 0.9)),
    # The brightness jumps from frame to frame; the events are unchanged.
    Degradation("flicker", corruptions.flicker, (0.0, 0.0, 0.05, 0.9, 0.05, 0.25)),
    # The object disappears: no outcome, contact with nothing, matter is lost.
    Degradation("object_vanish", corruptions.object_vanish, (0.6, 0.9, 0.7, 0.8, 0.9, 0.9), ("object_mask",)),
    # A copy of the object appears: matter from nothing; the original behaves as before.
    Degradation(
        "object_duplicate", corruptions.object_duplicate, (0.2, 0.2, 0.3, 0.7, 0.4, 0.9), ("object_mask",)
    ),
    # No gripper: objects move without contact.
    Degradation(
        "gripper_erased", corruptions.gripper_erased, (0.7, 0.7, 0.9, 0.8, 1.0, 0.8), ("gripper_mask",)
    ),
    # A correct video of another task.
    Degradation(
        "wrong_instruction",
        corruptions.unchanged,
        (1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
        ("other_instruction",),
        graded=False,
    ),
    # The arm follows other commands than the given ones. At strength 1 there is no visible cut: a judge without access
    # to the commands can detect it only by the outcome.
    Degradation(
        "wrong_actions", corruptions.wrong_actions, (0.6, 0.7, 1.0, 0.3, 0.1, 0.15), ("other_frames",)
    ),
    # Ends before the task is done: the frames are right, but the requested outcome is not shown.
    Degradation("truncated", corruptions.truncated, (0.5, 1.0, 0.1, 0.0, 0.1, 0.0), graded=False),
    # Without a picture, nothing is right.
    Degradation("static_noise", corruptions.static_noise, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    # The object changes its position from one frame to the next without contact.
    Degradation("teleport", corruptions.teleport, (0.3, 0.7, 0.8, 0.9, 0.8, 0.9), ("object_mask",)),
    # Every frame is blended with the clip's mean: ghosts without real contact; at strength 1 nothing moves.
    Degradation("ghosting", corruptions.ghosting, (0.8, 0.9, 0.8, 0.6, 0.8, 0.9)),
    # The beginning repeats: a cut each time, and no progress.
    Degradation("loop", corruptions.loop, (0.5, 0.9, 0.6, 0.7, 0.3, 0.5)),
)

_SCENE, _EPISODE = ("other_scene",), ("other_episode",)


def _local(
    rule: Rule, lost: tuple[float, float, float, float, float, float], needs: tuple[str, ...] = ()
) -> Degradation:
    return Degradation(rule.__name__, rule, lost, needs, graded=False, local=True)


# [ours] Columns as above. A permanent cut is worse than an interruption, since what follows a cut proves nothing.
LOCAL: tuple[Degradation, ...] = (
    # After the cut comes another recording: it shows neither task nor outcome of this one.
    _local(local.scene_cut, (0.6, 0.8, 0.8, 1.0, 0.6, 0.9), _SCENE),
    _local(local.episode_cut, (0.5, 0.7, 0.7, 0.9, 0.5, 0.8), _EPISODE),
    # The recording comes back, but the events in between are unknown.
    _local(local.scene_inserted, (0.4, 0.5, 0.6, 1.0, 0.5, 0.8), _SCENE),
    _local(local.episode_inserted, (0.35, 0.45, 0.5, 0.9, 0.4, 0.75), _EPISODE),
    _local(local.double_exposure, (0.4, 0.5, 0.5, 0.9, 0.6, 0.8), _SCENE),
    _local(local.split_picture, (0.4, 0.5, 0.6, 0.9, 0.6, 0.85), _SCENE),
    _local(local.blank, (0.4, 0.5, 0.6, 1.0, 0.6, 0.8)),
    # Effects precede their causes; if the end runs backwards, the task is undone.
    _local(local.local_reverse, (0.6, 0.8, 0.7, 0.9, 0.5, 0.7)),
    _local(local.reverse_from, (0.6, 0.9, 0.7, 0.7, 0.5, 0.7)),
    _local(local.boomerang, (0.7, 1.0, 0.8, 0.5, 0.5, 0.7)),
    _local(local.local_shuffle, (0.5, 0.6, 0.8, 1.0, 0.7, 0.8)),
    _local(local.jump_back, (0.5, 0.9, 0.6, 0.9, 0.5, 0.6)),
    # No object with mass can stand still and then be elsewhere at once; the motion in between is missing.
    _local(local.local_freeze, (0.5, 0.6, 0.7, 0.9, 0.5, 0.6)),
    _local(local.stutter, (0.4, 0.5, 0.6, 0.9, 0.5, 0.6)),
    _local(local.skip, (0.5, 0.6, 0.7, 0.9, 0.5, 0.7)),
    _local(local.rush, (0.4, 0.5, 0.6, 0.9, 0.5, 0.7)),
    # The events can be followed before and after the part, but not within it.
    _local(local.light_jump, (0.2, 0.2, 0.4, 1.0, 0.3, 0.6)),
    _local(local.colour_jump, (0.2, 0.25, 0.4, 1.0, 0.35, 0.7)),
    _local(local.local_blur, (0.25, 0.3, 0.4, 0.9, 0.5, 0.7)),
    _local(local.local_noise, (0.25, 0.3, 0.4, 1.0, 0.5, 0.7)),
    _local(local.pixelated, (0.3, 0.3, 0.4, 0.9, 0.5, 0.75)),
    _local(local.occluded, (0.4, 0.5, 0.5, 0.9, 0.6, 0.7)),
    _local(local.view_jump, (0.4, 0.5, 0.7, 1.0, 0.6, 0.85)),
    # Arm and object disappear or jump, and come back.
    _local(local.things_vanish, (0.5, 0.7, 0.7, 0.9, 0.8, 0.9)),
    _local(local.things_jump, (0.35, 0.6, 0.7, 0.9, 0.7, 0.9)),
)

TABLE: tuple[Degradation, ...] = (*WHOLE, *LOCAL)
DEGRADATIONS: dict[str, Degradation] = {degradation.name: degradation for degradation in TABLE}


@dataclass(frozen=True)
class Degraded:
    """A degraded clip: frames uint8 [T, H, W, 3], the instruction it is judged by, points float32 [6]."""

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
    """Degrade a clip.

    Args:
        name: one of `DEGRADATIONS`.
        frames: uint8 [T, H, W, 3].
        instruction, scores: instruction and points [6] of the real clip.
        strength: 0 (no change) to 1.
        rng: draws times, positions and noise.
        material: masks and other clips.

    Raises:
        UserError: the name is unknown, the strength is outside [0, 1], the clip has fewer than four frames, or material
            is missing.
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
    degraded = frames.copy() if strength == 0 else degradation.rule(frames, strength, rng, material)
    asked = instruction
    if "other_instruction" in degradation.needs and strength > 0:
        asked = str(material.other_instruction)
    visible = seen(frames, degraded) if degradation.local else 1.0
    return Degraded(degraded, asked, degradation.scores(scores, strength, visible))
