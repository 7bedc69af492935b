"""The view is a function of a state: what it draws, on wide and narrow terminals, and what meters make of work done."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from roboalign_ray.alignment.advantages import BatchCounts
from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.alignment.update import UpdateResult
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.rubric import names
from roboalign_ray.pipelines.monitor.terminal_view import LiveView, PlainView, ViewState, render, spark
from roboalign_ray.pipelines.monitor.utilisation import RoleMeter, RoleState, _amount
from roboalign_ray.world_model.protocol import RolloutReport

STATE = ViewState(
    title="demo",
    version=7,
    updates=12,
    elapsed_s=140.0,
    left_s=100.0,
    recorded=7,
    doing="evaluation",
    roles=(
        RoleState("rollout", 2, 1, 0.81, 5.3, 4096.0, 1),
        RoleState("scorer", 1, 1, 0.25, 5.2, 0.0, 0),
        RoleState("learner", 1, 1, 0.5, 4.9, 9200.0, 0),
    ),
    running=16,
    scorer_queue=3,
    ready=5,
    batch=16,
    bound=2,
    staleness={0: 60, 1: 30, 2: 10},
    curves={
        "reward_mean": (0.70, 0.71, 0.73),
        "reward_std": (0.1, 0.1, 0.1),
        "reward_lpips": (-0.14, -0.13, -0.125),
        "held_out/reward_mean": (0.725, 0.728),
        "reference_kl": (0.0, 0.001, 0.0021),
        "clip_fraction": (0.0, 0.0, 0.011),
        "entropy": (3.1, 3.0, 2.9),
        "grad_norm": (0.4, math.nan, 0.6),
    },
    failures={"worker_lost": 2, "prompt": 1},
)


def drawn(state, width=110):
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(render(state, width))
    return console.export_text()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 30), (110, 24), (110, 60)])
def test_a_judged_job_fits_its_terminal(width, height):
    """Five roles and more curves than there are lines; what a person must see is never among what is left out."""
    parts = ("fidelity", *(f"judged/{name}" for name in names()), "judged/uncertainty")
    curves = {
        **STATE.curves,
        "reward_group_std": (0.3, 0.3),
        **{f"reward_{part}": (0.1, 0.2) for part in parts},
        **{f"judge/{name}": (1.0, 2.0) for name in ("version", "gap", "rank")},
    }
    roles = tuple(replace(STATE.roles[1], name=name) for name in ("annotator", "distiller"))
    state = replace(STATE, roles=STATE.roles + roles, curves=curves, alarms={"judge/alarms": 1.0})
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    console.print(render(state, width, height))
    text = console.export_text()
    assert len(text.splitlines()) <= height
    for shown in (
        "alarm: judge/alarms",
        "failed attempts",
        "annotator",
        "ready",
        "held out",
        "gradient norm",
    ):
        assert shown in text
    left_out = [int(number) for number in re.findall(r"… (\d+) more", text)]
    rows = sum(
        label in text for label in (*parts, "reward ", "held out", "spread in", "student ", "rank agree")
    )
    assert bool(left_out) == (height < 60)
    if not left_out:
        assert rows == len(parts) + 5


@pytest.mark.parametrize("width", [60, 80, 110, 160])
def test_everything_is_on_the_picture_and_fits(width):
    text = drawn(STATE, width)
    assert all(len(line) <= width for line in text.splitlines())
    told = ["align demo", "7/12 updates", "2 min 20 s", "evaluation"]
    told += ["rollout", "1/2", "81%", "5.3", "4,096", "scorer", "25%", "learner", "9,200"]
    told += ["running", "16", "at scorers", "ready", "5", "of 16", "age 0", "60%", "age 2 of 2", "10%"]
    told += ["reward", "0.73", "held out", "0.728", "lpips", "-0.125", "KL to the reference", "0.0021"]
    told += ["clip fraction", "0.011", "entropy", "2.9", "gradient norm", "0.6", "2 worker_lost", "1 prompt"]
    assert [word for word in told if word not in text] == []
    assert "alarm" not in text
    assert "reward_std" not in text


def test_alarms_and_unknowns_are_told():
    state = replace(
        STATE, alarms={"judge/alarm_hacking": 1.0}, curves={}, staleness={}, left_s=None, failures={}
    )
    text = drawn(state)
    assert "alarm: judge/alarm_hacking = 1" in text
    assert "nothing trained yet" in text
    assert " left" not in text
    assert "failed attempts" not in text


def test_a_terminal_keeps_the_last_state():
    stream = io.StringIO()
    with LiveView(Console(file=stream, force_terminal=True, width=110, height=40)) as view:
        view.show(replace(STATE, version=6))
        view.show(STATE)
    assert "7/12 updates" in stream.getvalue()


def test_a_log_gets_lines_that_count_updates_whose_figures_are_complete():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=200)
    with PlainView(console, 5, 12) as view:
        view.show(replace(STATE, recorded=6))
        view.show(replace(STATE, recorded=6, version=7))
        view.show(STATE)
    [line] = stream.getvalue().splitlines()
    assert line.startswith("align: 7/12 updates")
    assert line.endswith("done, reward 0.73, held out 0.728, kl 0.0021")


@given(st.lists(st.floats(-1e12, 1e12) | st.just(math.nan), max_size=40))
def test_small_curves_rise_where_the_values_do(values):
    curve = spark(values)
    assert len(curve) == len(values)
    known = [(v, tick) for v, tick in zip(values, curve, strict=True) if math.isfinite(v)]
    assert all(tick == " " for v, tick in zip(values, curve, strict=True) if not math.isfinite(v))
    assert all(a[1] <= b[1] for a, b in pairwise(sorted(known)))
    if known and max(known)[0] > min(known)[0]:
        assert {"▁", "█"} <= set(curve)


def test_a_meter_tells_what_was_done_in_its_window():
    meter = RoleMeter(10.0, now=100.0)
    meter.add(100.0, 104.0, 2, 400)
    assert meter.rates(104.0) == pytest.approx((1.0, 0.5, 100.0))
    assert meter.rates(108.0) == pytest.approx((0.5, 0.25, 50.0))
    # At 112 the window begins at 102: half of the call lies in it, and three seconds of one that is under way.
    assert meter.rates(112.0, [109.0]) == pytest.approx(((2 + 3) / 10, 1 / 10, 200 / 10))
    assert meter.rates(120.0) == (0.0, 0.0, 0.0)


def test_a_meter_counts_what_reports_records_and_results_are_of():
    record = GroupRecord("e@0", (1,), (0,), (Failed("x"),), units=5, rollout_seconds=0.1)
    result = UpdateResult({}, 0.0, 1, 9, "token", BatchCounts(1, 0, 1, 0, 0))
    assert [_amount(part) for part in (RolloutReport({}, 7, 1.0, 0, 0), record, result, None)] == [7, 5, 9, 0]


works = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 5), st.integers(1, 8)), max_size=30)


@given(works, st.floats(1, 100))
def test_one_worker_is_never_more_than_busy_and_nothing_is_counted_twice(works, window):
    meter, now, done = RoleMeter(window, now=0.0), 0.0, 0
    for length, pause, groups in works:
        meter.add(now, now + length, groups, 10 * groups)
        now, done = now + length + pause, done + groups
    busy, groups, tokens = meter.rates(now)
    assert -1e-9 <= busy <= 1 + 1e-9
    assert groups * min(window, now) <= done + 1e-6
    assert tokens == pytest.approx(10 * groups)
    if now <= window:
        assert groups * now == pytest.approx(done)


def test_a_meter_with_no_time_behind_it_says_nothing():
    assert RoleMeter(10.0, now=5.0).rates(5.0, [5.0]) == (0.0, 0.0, 0.0)
