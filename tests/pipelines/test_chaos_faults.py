"""The fault injector's record, without a cluster: which faults count as noticed, and which can no longer be."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.config import RoleConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.faults import Fault, FaultPlan
from roboalign_ray.pipelines.chaos import injector as chaos_faults
from roboalign_ray.pipelines.chaos.injector import FaultInjector, alive
from roboalign_ray.pipelines.chaos.job import _longer
from roboalign_ray.pipelines.chaos.nodes import Nodes
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.cluster.worker_pool import Call, Worker, WorkerPool
from roboalign_ray.rewards.protocol import Scored

LOST = Failed("learner 1: worker lost", "worker_lost")


@pytest.fixture
def injector(tmp_path):
    return FaultInjector(FaultPlan(), tmp_path)


def worker(name: str, *, together: bool = False, groups=()) -> Worker:
    made = Worker(WorkerPool.__new__(WorkerPool), {}, 0)
    made.pool.name, made.pool.role, made.pool.together = name, RoleConfig(), together
    if groups:
        made.calls.append(Call(made, "score", len(groups), [], print, 0.0, {"groups": list(groups)}))
    return made


def until(condition) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def answered(injector: FaultInjector, what: str, answer) -> None:
    injector.reply(Call(worker("learner"), what, 0, [], print, 0.0), answer)


def test_a_full_disk_explains_the_end_of_a_run_once(injector):
    assert not injector.explains(OSError("no space left"))
    quota, killed = (
        injector.injections.add("quota", "learner 1"),
        injector.injections.add("rollout", "rollout 1"),
    )
    assert injector.explains(RoleFailure("checkpoint: no space left"))
    assert quota.why == "the run ends: checkpoint: no space left"
    assert killed.moot  # the run ended first
    assert killed.seconds is None
    assert not injector.explains(RoleFailure("another"))


def test_corrupted_weights_are_noticed_when_refused_and_moot_when_newer_ones_are_there(injector):
    first = injector.injections.add("weights", "bucket 1")
    answered(injector, "rollout", Failed("bucket 0 is none of version 3", "weights"))
    answered(injector, "take_buckets", 1)
    assert first.seconds is not None
    assert not first.moot
    second = injector.injections.add("weights", "bucket 1")
    answered(injector, "take_buckets", 1)
    assert second.moot


def test_a_corrupted_rollout_is_moot_when_its_scorer_or_the_learner_is_lost_first(injector):
    for lost in (worker("scorer", groups=[4, 5]), worker("learner", together=True)):
        corrupted = injector.injections.add("tokens", "group 4")
        corrupted.groups = {4}
        injector.lost(worker("scorer", groups=[6]), LOST)
        assert corrupted.open
        injector.lost(lost, LOST)
        assert corrupted.moot


def test_a_corrupted_reply_of_a_scorer_is_noticed_when_its_groups_are_made_again(tmp_path):
    injector = FaultInjector(FaultPlan([Fault("scores", 1, "corrupt")]), tmp_path)
    record = GroupRecord("e@0", (6, 7), (0,), (Scored(1.0, {}, 0), Scored(2.0, {}, 0)), 8, 0.1)

    def answer(what, numbers, reply):
        call = Call(worker(what), what, 1, [None], print, 0.0, {"groups": numbers})
        return injector.reply(call, reply)

    assert answer("score", [4], [record]) == [record]  # counted: now the fault is due
    [corrupted] = answer("score", [5], [record])
    assert corrupted == replace(record, seeds=(7, 7))
    [injection] = injector.injections
    answer("rollout", [6], None)
    assert injection.open
    answer("rollout", [5], None)
    assert injection.why == "made again"


def test_a_loss_without_an_injected_fault_is_a_surprise(injector):
    injector.lost(worker("rollout"), LOST)
    assert injector.surprises == [LOST.reason]


def test_groups_that_came_back_scored_are_counted_and_those_of_an_evaluation_are_not(tmp_path):
    injector = FaultInjector(FaultPlan([Fault("hang", 2, "hang")]), tmp_path)
    record = type("Record", (), {"scores": (1.0,)})()
    held_out = Call(worker("scorer"), "score", 1, [], print, 0.0, {"groups": [0], "held_out": True})
    injector.reply(held_out, [record, record])
    assert injector.plan.report().visits == {}
    answered(injector, "score", [record, record])
    assert injector.plan.report().exact


def test_a_soaks_clock_goes_on_between_rounds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(chaos_faults, "time", SimpleNamespace(monotonic=lambda: now[0]))
    injector = FaultInjector(FaultPlan([Fault("hang", 40, "hang")]), tmp_path, seconds=True)
    crew = SimpleNamespace(workforce=SimpleNamespace(observers=[], interceptors=[], pools=[]))
    for now[0], seconds in ((0.0, 0), (10.0, 10), (90.0, 90)):  # 80 s of them between two rounds
        with injector.attached(crew):
            until(lambda seconds=seconds: injector.plan.report().visits.get("hang", 0) == seconds)
    assert injector.share == 1.0


@given(done=st.integers(1, 500), least=st.integers(1, 50), share=st.just(0.0) | st.floats(0.001, 1))
def test_a_round_is_never_shorter_than_the_first_and_ends_within_a_third_of_the_rest(done, least, share):
    config = load_job("chaos", [f"alignment.updates={done}"])
    updates = _longer(config, least, share).alignment.updates - done
    assert updates >= least
    if updates > least:
        assert updates == pytest.approx((done / share - done) / 3, abs=0.5)


def test_a_node_that_cannot_be_added_ends_the_run_with_the_reason(tmp_path):
    nodes = Nodes(SimpleNamespace(add_node=refused, remove_node=lambda *_, **__: None), 1, 1)
    nodes._nodes = {"a": object()}
    injector = FaultInjector(FaultPlan([Fault("node", 1, "kill")]), tmp_path, nodes, seconds=True)
    crew = SimpleNamespace(workforce=SimpleNamespace(observers=[], interceptors=[], pools=[]))

    def inject() -> None:
        with injector.attached(crew):
            injector._known[worker("rollout"), 0] = (1, "a")
            until(lambda: injector.injections)
            injector.injections.notice("node", "lost")
            until(lambda: injector._broken)

    with pytest.raises(RoleFailure, match="no node could be added: raylet timed out"):
        inject()


def refused(**_) -> None:
    raise Exception("raylet timed out")


def test_a_process_that_has_ended_is_not_alive():
    assert alive(os.getpid())
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(process.pid)  # it waits to be reaped
    process.wait()
    assert not alive(process.pid)
