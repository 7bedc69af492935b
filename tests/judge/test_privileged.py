"""The privileged teacher on clips whose faults are made, and simulator labels against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_clips import FRAMES, made_clip

from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.bench.degradation_table import degrade
from roboalign_ray.judge.privileged.measure import (
    ClipLabels,
    PrivilegedTeacher,
    Reference,
    describe,
    simulator_scores,
)
from roboalign_ray.judge.rubric import maxima, names

CLIP, MATERIAL = made_clip()
CONTACT = np.arange(FRAMES) >= 6
REFERENCE = Reference(CLIP, maxima(), MATERIAL.object_mask, MATERIAL.gripper_mask, CONTACT)
TEACHER = PrivilegedTeacher()


def lost(name: str, strength: float = 1.0) -> dict[str, float]:
    """Share of the points that a degradation costs with the privileged teacher, by dimension."""
    spoiled = degrade(name, CLIP, "x", maxima(), strength, np.random.default_rng(0), MATERIAL).frames
    scores = TEACHER.score(spoiled, REFERENCE).scores()
    assert not isinstance(scores, Failed)
    return dict(zip(names(), 1 - scores / maxima(), strict=True))


def test_the_real_clip_gets_its_own_points() -> None:
    assert TEACHER.score(CLIP, REFERENCE).scores().tolist() == maxima().tolist()
    half = Reference(CLIP, maxima() / 2, MATERIAL.object_mask, MATERIAL.gripper_mask, CONTACT)
    assert TEACHER.score(CLIP, half).scores().tolist() == (maxima() / 2).tolist()


def test_noise_within_the_tolerance_costs_nothing_but_light() -> None:
    grain = np.random.default_rng(0).integers(-3, 4, CLIP.shape)
    clip = np.clip(CLIP.astype(int) + grain, 0, 255).astype(np.uint8)
    clip[0] = CLIP[0]
    scores = TEACHER.score(clip, REFERENCE).scores()
    assert scores[:3].tolist() == maxima()[:3].tolist()


def test_each_fault_costs_where_it_belongs() -> None:
    still = lost("freeze")
    assert still["manipulation_success"] == pytest.approx(1, abs=0.1)
    assert still["action_outcome_consistency"] > 0.85
    assert still["temporal_consistency"] == 1
    assert lost("object_vanish")["manipulation_success"] > 0.8
    assert lost("object_vanish")["physics_adherence"] > 0.5
    assert lost("gripper_erased")["action_outcome_consistency"] > 0.8
    assert lost("gripper_erased")["manipulation_success"] < 0.2
    assert lost("flicker")["temporal_consistency"] > 0.9
    assert lost("blur")["physics_adherence"] > 0.5
    assert lost("truncated")["manipulation_success"] > 0.8
    assert lost("wrong_instruction") == dict.fromkeys(names(), 0.0)  # not in the picture: not its business


@pytest.mark.parametrize("name", ["freeze", "blur", "object_vanish", "truncated", "ghosting"])
def test_more_of_a_fault_never_costs_less(name: str) -> None:
    costs = [sum(lost(name, strength).values()) for strength in (0.0, 0.35, 0.7, 1.0)]
    assert costs[0] == 0
    assert (np.diff(costs) >= -1e-6).all()
    assert costs[-1] > 0.5


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), level=st.floats(0, 255))
def test_scores_stay_within_the_rubric(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    clip = np.clip(rng.normal(level, 60, CLIP.shape), 0, 255).astype(np.uint8)
    scores = TEACHER.score(clip, REFERENCE).scores()
    assert (scores >= 0).all()
    assert (scores <= maxima()).all()


def test_what_cannot_be_measured_is_failed_not_zero() -> None:
    blind = TEACHER.score(CLIP, Reference(CLIP, maxima()))
    assert isinstance(blind.scores(), Failed)
    failed = {n for n, c in zip(names(), blind.components, strict=True) if isinstance(c, Failed)}
    assert failed == set(names()[:3]) | {"contact_realism"}
    assert blind.components[3] == 1.0
    assert blind.components[5] == 2.0
    assert "no gripper" in blind.scores().reason
    assert describe(blind)["temporal_consistency"] == 1.0


def test_clips_that_do_not_fit_are_told() -> None:
    with pytest.raises(UserError, match="its reference"):
        TEACHER.score(CLIP[:, :16], REFERENCE)
    with pytest.raises(UserError, match="too short"):
        TEACHER.score(CLIP[:2], REFERENCE)


def made_labels(reach: tuple[float, float], carry: tuple[float, float], depth: float = 0.0) -> dict:
    """Hand on the x axis at a distance from the object, target on the y axis; first and last distances in metres."""
    time = np.linspace(0, 1, 5)
    thing = np.zeros((5, 3))
    thing[:, 1] = -(carry[0] + (carry[1] - carry[0]) * time)
    hand = thing.copy()
    hand[:, 0] = reach[0] + (reach[1] - reach[0]) * time
    return {
        "gripper_position": hand,
        "object_position": thing,
        "target_position": np.zeros((5, 3)),
        "penetration": np.full(5, depth),
    }


@pytest.mark.parametrize(
    ("reach", "carry", "progress"),
    [
        ((0.3, 0.3), (0.2, 0.2), 0.0),
        ((0.3, 0.25), (0.2, 0.2), 0.5),
        ((0.3, 0.1), (0.2, 0.2), 1.0),
        ((0.3, 0.4), (0.2, 0.12), 0.8),
        ((0.3, 0.4), (0.04, 0.02), 0.5),
        ((0.02, 0.02), (0.2, 0.2), 1.0),
        ((0.1, 0.3), (0.1, 0.3), 0.0),
    ],
)
def test_progress_is_distance_closed(reach, carry, progress: float) -> None:
    scored = simulator_scores(ClipLabels(False, made_labels(reach, carry)))
    assert scored.measurements["progress"] == pytest.approx(progress, abs=1e-6)
    assert scored.scores() == pytest.approx([3 * progress, progress, 1, 1, 1, 2], abs=1e-5)
    done = simulator_scores(ClipLabels(True, made_labels(reach, carry)))
    assert done.scores().tolist() == maxima().tolist()


def test_penetration_and_unknown_labels() -> None:
    deep = [
        simulator_scores(ClipLabels(True, made_labels((0, 0), (0, 0), d))).components[4]
        for d in (0.02, 0.0375, 0.06)
    ]
    assert deep == pytest.approx([1, 0.5, 0])
    unknown = simulator_scores(ClipLabels(None, {}))
    assert isinstance(unknown.scores(), Failed)
    assert isinstance(unknown.components[1], Failed)
    assert unknown.components[3] == 1.0
