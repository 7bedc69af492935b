"""The trace of real workers that work, queue, are offered things and die: Chrome's format, true to what happened."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from itertools import pairwise

import pytest
import ray
from ray import cloudpickle

from roboalign_ray.config import RoleConfig
from roboalign_ray.config.asynchrony import LivenessConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.telemetry.chrome_trace import TraceFile, read_trace
from roboalign_ray.pipelines.cluster.runtime import OFFER
from roboalign_ray.pipelines.cluster.worker_pool import Observer, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce
from roboalign_ray.pipelines.monitor.call_trace import DRIVER, PAUSES, UPDATES, RunTrace
from roboalign_ray.pipelines.monitor.utilisation import Meters

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TURNS_S = 120


class Hand:
    """A worker that does as it is told."""

    def ready(self):
        pass

    def beat(self):
        return 0

    def plod(self, seconds):
        time.sleep(seconds)
        return seconds

    def die(self):
        os._exit(1)

    def take(self):
        time.sleep(0.05)

    def update(self):
        time.sleep(0.2)

    def publish(self):
        time.sleep(0.1)

    def take_buckets(self):
        time.sleep(0.1)


class Witness(Observer):
    """Keeps what it is told."""

    def __init__(self):
        self.spans, self.losses, self.starts = [], [], []

    def answered(self, call, answer, began, ended):
        self.spans.append((call, answer, began, ended))

    def lost(self, worker, failed):
        self.losses.append(worker)

    def started(self, worker):
        self.starts.append(worker)


@pytest.fixture(scope="module")
def seen(ray_cluster, tmp_path_factory):
    """A trace, who saw the same, and the meters: two hands with queues, one of which dies; then a learner's update."""
    role = RoleConfig(num_cpus=0.1, threads=1, max_restarts=1, deadline_s=90)
    hands, learners = (WorkerPool(name, Hand, role, [{}] * n) for name, n in (("hand", 2), ("learner", 1)))
    force = Workforce([hands, learners], LivenessConfig(every_s=0.3))
    for pool in force.pools:
        ray.get([actor.ready.remote() for actor in pool.actors], timeout=TURNS_S)
        pool.mark_up()
    path, witness = tmp_path_factory.mktemp("trace") / "trace.json", Witness()
    began = time.monotonic()
    meters = Meters(3600.0, began, update_groups=4)
    with TraceFile(path, 10_000) as file:
        trace = RunTrace(file)
        force.observers += [trace, witness, meters]
        _work(force, hands, learners, trace)
    states = [meters.state(pool, time.monotonic()) for pool in force.pools]
    force.close()
    return read_trace(path), witness, states, time.monotonic() - began


def _work(force, hands, learners, trace):
    answers = []

    def then(call, answer):
        answers.append(answer)

    first, second = hands.workers
    for number in range(4):
        about = {"groups": [number], "version": 3}
        force.send(first, "plod", 0.2, then=then, size=1, about=about)
        force.send(second, "plod", 0.1, then=then, size=1, about=about)
    for _ in range(3):
        force.send(first, "take", then=then, group=OFFER, about={"version": 4})
    _turn_until(force, lambda: len(answers) == 11)
    force.send(second, "die", then=then)
    force.send(second, "plod", 0.1, then=then, size=1)
    _turn_until(force, lambda: len(answers) == 13 and hands.up == 2)
    [learner] = learners.workers
    for method in ("update", "publish", "take_buckets"):
        force.send(learner, method, then=then, about={"version": 3} if method == "update" else None)
        _turn_until(force, lambda: not learner.calls)
    with trace.span("checkpoint", version=4):
        time.sleep(0.05)


def _turn_until(force, condition):
    ends = time.monotonic() + TURNS_S
    while not condition():
        assert time.monotonic() < ends
        force.turn(0.2)


def spans_of(events):
    return [event for event in events if event["ph"] == "X"]


def test_every_call_is_a_span_as_long_as_the_call(seen):
    events, witness, _, _ = seen
    calls = [e for e in spans_of(events) if e["cat"] == "call"]
    assert len(calls) == len(witness.spans)
    for span, (call, answer, began, ended) in zip(calls, witness.spans, strict=True):
        assert span["name"] == call.what
        assert dict(call.about).items() <= span["args"].items()
        assert ("failed" in span["args"]) == isinstance(answer, Failed)
        if call.group is None:
            assert abs(span["dur"] - 1e6 * (ended - began)) <= 1
            assert isinstance(answer, Failed) or span["dur"] == pytest.approx(1e6 * call.seconds, abs=1)
    assert "beat" not in {span["name"] for span in calls}
    slept = [s["dur"] for s in calls if s["name"] == "plod" and s["tid"] == 1]
    assert len(slept) == 4
    assert min(slept) > 0.15e6


def test_no_lane_has_two_things_at_once(seen):
    lanes = defaultdict(list)
    for event in spans_of(seen[0]):
        lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(lanes) >= 5
    for spans in lanes.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(spans)))


def test_lanes_are_named_by_role_and_worker(seen):
    events = seen[0]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes[DRIVER] == "driver"
    assert sorted(processes.values()) == ["driver", "hand", "learner"]
    threads = {(processes[e["pid"]], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    assert {("hand", "hand 1"), ("hand", "hand 2"), ("hand", "hand 1, offers")} <= threads
    assert {e["pid"] for e in spans_of(events)} <= processes.keys()


def test_a_loss_and_what_came_after_it_are_instants(seen):
    events, witness, states, _ = seen
    instants = [e for e in events if e["ph"] == "i"]
    assert [e["name"] for e in instants] == ["worker lost", "worker started"]
    assert [w.name for w in witness.losses] == [w.name for w in witness.starts] == ["hand 2"]
    assert {(e["tid"], e["s"]) for e in instants} == {(2, "t")}
    assert instants[0]["ts"] <= instants[1]["ts"]
    assert instants[0]["args"]["kind"] == "worker_lost"
    assert [state.lost for state in states] == [1, 0]
    # What waited behind the call that killed it never began, and has no span.
    assert len([e for e in spans_of(events) if e["name"] == "plod" and e["tid"] == 2]) == 4


def test_updates_weights_and_checkpoints_are_the_drivers_spans(seen):
    driver = {e["name"]: e for e in spans_of(seen[0]) if e["pid"] == DRIVER}
    assert driver.keys() == {"update 3", "weights 4", "checkpoint"}
    update, weights, checkpoint = driver["update 3"], driver["weights 4"], driver["checkpoint"]
    assert {update["tid"], weights["tid"], checkpoint["tid"]} == {UPDATES, PAUSES}
    assert update["ts"] + update["dur"] == weights["ts"]
    calls = {e["name"]: e for e in spans_of(seen[0]) if e["cat"] == "call"}
    assert update["ts"] == calls["update"]["ts"]
    assert weights["ts"] + weights["dur"] == calls["take_buckets"]["ts"] + calls["take_buckets"]["dur"]
    assert checkpoint["args"] == {"version": 4}


def test_meters_agree_with_the_spans(seen):
    _, witness, states, elapsed = seen
    hand = states[0]
    work = [(c, a, e - b) for c, a, b, e in witness.spans if c.group is None and c.worker.pool.name == "hand"]
    groups = sum(call.size for call, answer, _ in work if not isinstance(answer, Failed))
    assert groups == 8
    assert hand.groups * elapsed == pytest.approx(groups, rel=0.2)
    assert hand.busy * 2 * elapsed == pytest.approx(sum(length for *_, length in work), rel=0.2)
