"""Motion and its penalty against closed forms in NumPy: constant velocity, sinusoid, step, ramp, violated limits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from roboalign_ray.config.rewards import ExecutabilityRewardConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.inverse_dynamics.embodiment import Embodiment, load_embodiment
from roboalign_ray.inverse_dynamics.kinematics import kinematics
from roboalign_ray.inverse_dynamics.penalty import Penalty, huber, penalty_of

CONFIG = ExecutabilityRewardConfig()


def profile(dims: int = 1, **changes: object) -> Embodiment:
    fields = {
        "name": "test",
        "dt": 0.1,
        "names": [f"x{n}" for n in range(dims)],
        "units": ["m"] * dims,
        "velocity": [1.0] * dims,
        "acceleration": [4.0] * dims,
        "sources": dict.fromkeys(("dt", "velocity", "acceleration", "position", "jerk", "weights"), "test"),
        **changes,
    }
    return Embodiment.model_validate(fields)


def penalise(position: np.ndarray, dt: float, who: Embodiment, kind: str = "absolute") -> Penalty:
    """The penalty of positions [T + 1, A], given as positions or as their increments."""
    position = position if position.ndim == 2 else position[:, None]
    actions = position if kind == "absolute" else np.diff(position, axis=0)
    return penalty_of(kinematics(actions[None], (kind,) * position.shape[1], dt), who, CONFIG)  # type: ignore[arg-type]


def test_the_derivatives_of_a_cubic_are_its_own() -> None:
    """q = t³: the third difference is exactly 6, the second one 6 t a step before."""
    dt, t = 0.5, np.arange(12) * 0.5
    found = kinematics((t**3)[:, None], ("absolute",), dt)
    np.testing.assert_allclose(found.jerk[3:, 0], 6)
    np.testing.assert_allclose(found.acceleration[2:, 0], 6 * (t[2:] - dt))
    np.testing.assert_allclose(found.velocity[1:, 0], np.diff(t**3) / dt)
    assert np.isnan(found.velocity[0, 0])
    assert np.isnan(found.jerk[:3, 0]).all()
    increments = kinematics(np.diff(t**3)[:, None], ("delta",), dt)
    np.testing.assert_allclose(increments.jerk[2:], found.jerk[3:])
    np.testing.assert_allclose(increments.velocity, found.velocity[1:])
    rates = kinematics(increments.velocity, ("velocity",), dt)
    np.testing.assert_allclose(rates.jerk[2:], found.jerk[3:])


def test_angles_that_wrap_turn_on_and_switches_do_not_move() -> None:
    turning = np.linspace(0, 12, 40)
    wrapped = (turning + np.pi) % (2 * np.pi) - np.pi
    found = kinematics(np.stack([wrapped, np.arange(40) % 2], axis=1), ("angle", "toggle"), 0.1)
    np.testing.assert_allclose(found.velocity[1:, 0], 12 / 39 / 0.1)
    assert np.isnan(found.velocity[:, 1]).all()
    quiet = profile(2)
    assert penalty_of(found, quiet, CONFIG).terms["jerk"] == pytest.approx(0, abs=1e-12)


def test_a_constant_velocity_below_its_limit_costs_nothing() -> None:
    t = np.arange(10) * 0.1
    found = penalise(0.99 * t, 0.1, profile())
    assert found.total == pytest.approx(0, abs=1e-12)
    assert found.within.all()


@given(speed=st.floats(1.1, 50.0))
def test_a_constant_velocity_above_its_limit_costs_twice_the_squared_excess(speed: float) -> None:
    t = np.arange(10) * 0.1
    for kind in ("absolute", "delta"):
        found = penalise(speed * t, 0.1, profile(), kind)
        assert found.total[0] == pytest.approx(2 * (speed - 1) ** 2, rel=1e-6)
        assert not found.within.any()
        np.testing.assert_allclose(found.terms["velocity_limit"], found.total)


def test_a_sinusoid_has_the_penalty_of_its_amplitudes() -> None:
    """Below all thresholds: 0.5 * j²/2 + 0.25 * a²/2, with means 1/2 of squares over whole periods."""
    dt, hertz, amplitude = 0.01, 1.0, 0.02
    omega = 2 * np.pi * hertz
    t = np.arange(501) * dt
    found = penalise(amplitude * np.sin(omega * t), dt, profile())
    expected = 0.5 * (amplitude * omega**3) ** 2 / 4 + 0.25 * (amplitude * omega**2) ** 2 / 4
    assert found.total[0] == pytest.approx(expected, rel=0.01)
    assert {name for name, value in found.terms.items() if value[0] > 0} == {"jerk", "acceleration"}


def test_a_step_is_one_great_jerk_up_and_down() -> None:
    """A step of h: v = h/dt once, a = ±h/dt², j = h/dt³ (1, -2, 1); Huber is linear there."""
    dt, h, count = 0.1, 0.5, 12
    position = np.where(np.arange(count) < 6, 0.0, h)
    found = penalise(position, dt, profile())
    jerks = np.array([1, -2, 1]) * h / dt**3
    delta_j, delta_a = 0.5 * 4 / 0.1, 0.5 * 4
    expected = {
        "jerk": 0.5 * (delta_j * (np.abs(jerks) - delta_j / 2)).sum() / (count - 3),
        "acceleration": 0.25 * 2 * delta_a * (h / dt**2 - delta_a / 2) / (count - 2),
        "velocity_limit": 2 * (h / dt - 1) ** 2 / (count - 1),
        "acceleration_limit": 2 * (h / dt**2 - 4) ** 2 / (count - 2),
        "position_limit": 0.0,
    }
    assert {name: value[0] for name, value in found.terms.items()} == pytest.approx(expected)


def test_a_ramp_of_velocity_has_one_acceleration() -> None:
    dt, a = 0.1, 1.5
    t = np.arange(6) * dt
    found = penalise(a * t**2 / 2, dt, profile())
    assert found.terms["acceleration"][0] == pytest.approx(0.25 * a**2 / 2)
    assert found.total[0] == pytest.approx(0.25 * a**2 / 2)


def test_positions_outside_their_range_cost_the_squared_distance() -> None:
    who = profile(position=[[-1.0, 0.25]])
    found = penalise(np.full(8, 0.75), 0.1, who)
    assert found.terms["position_limit"][0] == pytest.approx(0.25)
    assert not found.within.any()
    assert found.violations[0] == 1
    assert penalise(np.full(8, -0.9), 0.1, who).total == 0


def test_grippers_count_a_fifth_and_dimensions_without_weight_not_at_all() -> None:
    """Weights 1, 0.2 and 0, divided by their mean 0.4."""
    who = profile(3, weights=[1.0, 0.2, 0.0])
    t = np.arange(10) * 0.1
    still = np.zeros(10)
    excess = 2 * (3 - 1) ** 2
    for dim, weight in enumerate((1.0, 0.2, 0.0)):
        columns = [still, still, still]
        columns[dim] = 3 * t
        found = penalise(np.stack(columns, axis=1), 0.1, who)
        assert found.total[0] == pytest.approx(excess * weight / 0.4 / 3)
        assert found.within[0] == (weight == 0)


@pytest.mark.parametrize("kind", ["absolute", "delta"])
def test_half_the_time_step_of_the_same_motion_has_the_same_penalty(kind: str) -> None:
    """The penalty is physical: it depends on the motion, not on how often it is sampled."""
    who = profile(velocity=[0.5])
    totals = []
    for dt in (0.02, 0.01):
        t = np.arange(round(6 / dt) + 1) * dt
        totals.append(penalise(0.3 * np.sin(3 * t), dt, who, kind).total[0])
    assert totals[1] == pytest.approx(totals[0], rel=0.02)
    # so it is where the Huber loss is linear: its threshold follows the profile's dt, not the clip's
    hard = []
    for dt in (0.02, 0.01):
        t = np.arange(round(6 / dt) + 1) * dt
        hard.append(penalise(0.3 * np.sin(12 * t), dt, profile(velocity=[9.0]), kind).total[0])
    assert hard[1] == pytest.approx(hard[0], rel=0.02)


@given(
    jitter=hnp.arrays(np.float64, (12, 2), elements=st.floats(-1, 1)),
    scales=st.lists(st.floats(0, 5), min_size=2, max_size=4, unique=True),
)
def test_more_jitter_never_costs_less(jitter: np.ndarray, scales: list[float]) -> None:
    straight = np.linspace(0, 1, 12)[:, None] * np.array([0.5, -0.3])
    totals = [penalise(straight + scale * jitter, 0.1, profile(2)).total[0] for scale in sorted(scales)]
    assert all(later >= earlier * (1 - 1e-9) - 1e-12 for earlier, later in pairwise(totals))


@given(noise=hnp.arrays(np.float64, (2, 8, 2), elements=st.floats(-1e30, 1e30)))
def test_noise_of_any_size_has_a_finite_penalty(noise: np.ndarray) -> None:
    found = penalty_of(kinematics(noise, ("delta", "absolute"), 0.1), profile(2), CONFIG)
    assert np.isfinite(found.total).all()
    assert np.isfinite(found.per_frame).all()


@given(noise=hnp.arrays(np.float64, (3, 9, 2), elements=st.floats(-10, 10)))
def test_the_mean_over_frames_is_the_clips_penalty(noise: np.ndarray) -> None:
    found = penalty_of(kinematics(noise, ("delta", "hold"), 0.1), profile(2), CONFIG)
    assert found.per_frame.shape == (3, 9)
    np.testing.assert_allclose(found.per_frame.mean(-1), found.total, rtol=1e-9, atol=1e-12)


def test_a_bad_moment_stands_in_its_own_frames() -> None:
    position = np.zeros(20)
    position[12:] = 1.0
    frames = penalise(position, 0.1, profile(), "delta").per_frame[0]
    assert (frames[:11] == 0).all()
    assert (frames[11:14] > 0).all()  # velocity, then acceleration, then jerk
    assert (frames[14:] == 0).all()


def test_the_published_constants_give_the_worked_example() -> None:
    """Joint 0 of the bimanual arm moves by 0.2 rad in one step of 1/30 s and rests: worked out by hand.

    v = 6 rad/s, beyond 2.67036; a = ±180 rad/s², beyond 5; j = 5400, -10800, 5400 rad/s³.
    Huber of j with delta 75: 75 (|j| - 37.5); of a with delta 2.5: 2.5 (|a| - 1.25).
    Weight of a joint 1 / mean(12 of 1, 2 of 0.2) = 1 / 0.885714; mean over 14 dimensions.
    """
    who = load_embodiment("bimanual_eva")
    position = np.zeros((8, 14))
    position[4:, 0] = 0.2
    found = penalty_of(kinematics(position[None], ("absolute",) * 14, 1 / 30), who, CONFIG)
    share = 1 / (12.4 / 14) / 14
    expected = {
        "jerk": 0.5 * share * (75 * (21600 - 3 * 37.5)) / 5,
        "acceleration": 0.25 * share * (2 * 2.5 * (180 - 1.25)) / 6,
        "velocity_limit": 2 * share * (6 - 2.67036) ** 2 / 7,
        "acceleration_limit": share * 2 * 175**2 / 6,
        "position_limit": 0.0,
    }
    assert {name: value[0] for name, value in found.terms.items()} == pytest.approx(expected)
    assert found.total[0] == pytest.approx(13822.98, rel=1e-6)
    assert (1 + found.total[0] / 2000) ** -0.5 == pytest.approx(0.35553, abs=1e-5)  # with their P0 of 2000


def test_hubers_loss_meets_itself_at_its_threshold() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0, -4.0])
    np.testing.assert_allclose(huber(x, 2.0), [0, 0.5, 2, 4, 6])


@pytest.mark.parametrize(("kind", "least"), [("delta", 3), ("absolute", 4), ("velocity", 3)])
def test_a_clip_without_a_jerk_is_refused_in_one_line(kind: str, least: int) -> None:
    kinematics(np.zeros((least, 1)), (kind,), 0.1)  # type: ignore[arg-type]
    told = rf"a clip of 2 frames is too short, a jerk needs {least + 1}; score longer rollouts"
    with pytest.raises(UserError, match=told):
        kinematics(np.zeros((1, 1)), (kind,), 0.1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="too short"):
        kinematics(np.zeros((least - 1, 1)), (kind,), 0.1)  # type: ignore[arg-type]


def test_actions_of_unknown_kinds_have_no_motion() -> None:
    with pytest.raises(UserError, match="kind of action 1 is not known"):
        kinematics(np.zeros((9, 2)), ("delta", "unknown"), 0.1)
