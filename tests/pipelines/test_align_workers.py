"""Workers that are lost, hang or are late, on a small Ray cluster: every call is answered once."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from roboalign_ray.config import RoleConfig
from roboalign_ray.config.asynchrony import LivenessConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.weight_sync.manifest import CorruptVersion
from roboalign_ray.pipelines.align.launch import joined
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.pipelines.cluster.worker_pool import Interceptor, Observer, RoleLost, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

LIVENESS = LivenessConfig(every_s=0.2, silence_s=60, stall_s=1)
TURNS_S = 120


class Hand:
    """A worker that does as it is told."""

    def __init__(self, name="hand"):
        self.name, self.steps = name, 0

    def ready(self):
        pass

    def beat(self):
        return self.steps

    def answer(self, value):
        return value

    def two(self, value):
        return f"left by {self.name}", value

    def die(self):
        os._exit(1)

    def stumble(self):
        raise ZeroDivisionError("by zero")

    def distrust(self):
        raise CorruptVersion("version 3 is damaged")

    def refuse(self):
        raise UserError("no such thing", where="here")

    def hang(self):
        time.sleep(600)

    def rest(self, seconds):
        time.sleep(seconds)
        return "rested"

    def plod(self, seconds):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.steps += 1
            time.sleep(0.05)
        return "arrived"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def hire():
    forces = []

    def make(workers=2, restarts=1, deadline_s=60.0, *, liveness=LIVENESS, together=False):
        role = RoleConfig(num_cpus=0.1, threads=1, max_restarts=restarts, deadline_s=deadline_s)
        pool = WorkerPool(
            "hand", Hand, role, [{"name": f"hand {n}"} for n in range(workers)], together=together
        )
        force = Workforce([pool], liveness)
        forces.append(force)
        ray.get([actor.ready.remote() for actor in pool.actors], timeout=60)
        pool.mark_up()
        return force, pool

    yield make
    for force in forces:
        force.close()


class Forger(Interceptor):
    """Adds one to every number that is answered, and exchanges what was left at the worker."""

    def reply(self, call, answer):
        call.values[:] = ["exchanged"] * len(call.values)
        return answer + 1 if isinstance(answer, int) else answer


class Witness(Observer):
    def __init__(self):
        self.seen = []

    def answered(self, call, answer, began, ended):
        self.seen.append((call.what, answer, list(call.values)))


class Answers(list):
    """Takes answers as `then`."""

    def __call__(self, call, answer):
        self.append(answer)


def turn_until(force, condition):
    ends = time.monotonic() + TURNS_S
    while not condition():
        assert time.monotonic() < ends
        force.turn(0.2)


def test_answers_come_once_and_what_stays_away_is_a_reference(hire):
    force, pool = hire()
    answers, left = Answers(), Answers()
    busy = pool.free()
    force.send(busy, "answer", 7, then=answers, size=3)
    assert busy.load == 3
    assert pool.free() is not busy
    assert pool.free(size=1, depth=4) is not busy
    call = force.send(pool.free(), "two", 8, then=left, returns=2)
    assert pool.free() is None
    assert pool.free(size=1, depth=4) is call.worker
    turn_until(force, lambda: answers and left)
    assert answers == [7]
    assert left == [8]
    [reference] = call.values
    assert ray.get(reference, timeout=30).startswith("left by hand")
    assert busy.load == 0
    assert call.seconds > 0


def test_an_interceptors_reply_is_what_everybody_sees(hire):
    force, pool = hire()
    witness, answers = Witness(), Answers()
    force.observers.append(witness)
    force.interceptors.append(Forger())
    call = force.send(pool.free(), "two", 7, then=answers, returns=2)
    turn_until(force, lambda: answers)
    assert answers == [8]
    assert call.values == ["exchanged"]
    assert witness.seen == [("two", 8, ["exchanged"])]


def test_a_lost_worker_fails_all_its_calls_and_another_takes_its_place(hire):
    force, pool = hire()
    first, answers = pool.workers[0], Answers()
    force.send(first, "die", then=answers)
    force.send(first, "answer", 1, then=answers)
    turn_until(force, lambda: len(answers) == 2)
    assert all(isinstance(answer, Failed) and answer.kind == "worker_lost" for answer in answers)
    assert force.lost == 1
    turn_until(force, lambda: pool.up == 2)
    force.send(first, "two", 2, then=answers, returns=2)
    turn_until(force, lambda: len(answers) == 3)
    assert answers[-1] == 2

    force.send(first, "die", then=answers)
    turn_until(force, lambda: len(answers) == 4)
    assert first not in pool.workers  # it was restarted once already
    assert len(pool.workers) == 1


def test_a_call_without_progress_of_its_own_is_given_its_deadline(hire):
    force, pool = hire(workers=1)
    answers = Answers()
    force.send(pool.workers[0], "rest", 3 * LIVENESS.stall_s, then=answers, progresses=False)
    turn_until(force, lambda: answers)
    assert answers == ["rested"]
    assert force.lost == 0


def test_an_idle_worker_that_is_lost_is_noticed(hire):
    force, pool = hire()
    ray.kill(pool.actors[1], no_restart=True)
    turn_until(force, lambda: force.lost == 1)
    turn_until(force, lambda: pool.up == 2)


def test_the_last_worker_of_a_role_ends_the_job(hire):
    force, pool = hire(workers=1, restarts=0)
    force.send(pool.workers[0], "die", then=Answers())
    with pytest.raises(RoleFailure, match="no hand worker is left"):
        turn_until(force, lambda: False)


def test_workers_that_need_each_other_are_lost_together(hire):
    force, pool = hire(restarts=5, together=True)
    force.send(pool.workers[1], "die", then=Answers())
    with pytest.raises(RoleLost):
        turn_until(force, lambda: False)
    force.close_pool(pool)
    assert force.pools == []


def test_an_error_is_a_value_and_bad_input_ends_the_job(hire):
    force, pool = hire(workers=1)
    answers = Answers()
    force.send(pool.workers[0], "stumble", then=answers)
    turn_until(force, lambda: answers)
    assert answers[0].kind == "worker_error"
    assert "ZeroDivisionError: by zero" in answers[0].reason
    assert force.lost == 0
    force.send(pool.workers[0], "distrust", then=answers)
    turn_until(force, lambda: len(answers) == 2)
    assert answers[1].kind == "weights"
    force.send(pool.workers[0], "refuse", then=answers)
    with pytest.raises(UserError, match="no such thing"):
        turn_until(force, lambda: False)


def test_a_worker_that_makes_no_progress_is_replaced_and_a_slow_one_is_not(hire):
    force, pool = hire()
    answers, slow = Answers(), Answers()
    force.send(pool.workers[0], "hang", then=answers)
    force.send(pool.workers[1], "plod", 4.0, then=slow)
    turn_until(force, lambda: answers and slow)
    assert answers[0].kind == "worker_hung"
    assert "no progress in hang for 1 s" in answers[0].reason
    assert slow == ["arrived"]
    turn_until(force, lambda: pool.up == 2)


def test_a_worker_that_passes_its_roles_deadline_is_replaced(hire):
    force, pool = hire(workers=1, deadline_s=3.0, liveness=LivenessConfig(stall_s=500))
    answers = Answers()
    force.send(pool.workers[0], "plod", 100.0, then=answers)
    turn_until(force, lambda: answers)
    assert answers[0].kind == "deadline"
    assert "no answer to plod within 3 s" in answers[0].reason


def test_pools_grow_and_shrink_by_idle_workers(hire):
    force, pool = hire(workers=1)
    force.resize(pool, 3)
    turn_until(force, lambda: pool.up == 3)
    answers = Answers()
    force.send(pool.workers[2], "plod", 1.0, then=answers)
    force.resize(pool, 1)
    assert [worker.number for worker in pool.workers] == [2]
    turn_until(force, lambda: answers)
    assert answers == ["arrived"]


def test_nobody_is_told_of_what_is_disregarded(hire):
    force, pool = hire(workers=1)
    answers = Answers()
    force.send(pool.workers[0], "plod", 0.5, then=answers)
    force.drop_callbacks()
    turn_until(force, lambda: pool.free() is not None)
    assert answers == []


# --- lost while loading ----------------------------------------------------------------------------------------------


class Frail(Hand):
    """Dies while it loads, as often as there are files to take away."""

    def __init__(self, deaths, rank=0):
        super().__init__()
        self.deaths, self.rank = Path(deaths), rank

    def _load(self):
        if self.rank == 0:
            for death in sorted(self.deaths.iterdir()):
                death.unlink()
                os._exit(1)

    def ready(self):
        self._load()

    def address(self):
        return "here"

    def join(self, address):
        assert address == "here"
        self._load()


def frail(deaths, restarts, workers=2, *, together=False):
    role = RoleConfig(num_cpus=0.1, threads=1, max_restarts=restarts, deadline_s=60.0)
    arguments = [{"deaths": str(deaths), "rank": rank} for rank in range(workers)]
    return WorkerPool("hand", Frail, role, arguments, together=together)


@pytest.fixture
def deaths(tmp_path):
    for number in range(2):
        (tmp_path / f"death {number}").touch()
    return tmp_path


def test_a_worker_lost_while_it_loads_is_replaced(deaths):
    pool = frail(deaths, restarts=2)
    force = Workforce([pool], LIVENESS)
    try:
        pool.load()()
        assert pool.up == 2
        assert [worker.restarts for worker in pool.workers] == [2, 0]
        assert ray.get([actor.answer.remote(3) for actor in pool.actors], timeout=30) == [3, 3]
    finally:
        force.close()


def test_a_worker_lost_too_often_while_it_loads_ends_the_job(deaths):
    pool = frail(deaths, restarts=1)
    with pytest.raises(RoleFailure, match=r"hand start .*worker lost"):
        pool.load()()
    Workforce([pool], LIVENESS).close()


@pytest.mark.parametrize("restarts", [1, 2])
def test_all_ranks_are_made_anew_where_one_is_lost_while_they_join(deaths, restarts):
    force, made = Workforce([], LIVENESS), []

    def make():
        made.append(frail(deaths, restarts, together=True))
        return made[-1]

    try:
        if restarts < 2:
            with pytest.raises(RoleFailure, match=r"learner start .*worker lost"):
                joined(make, force)
            return
        pool = joined(make, force)
        assert (len(made), pool) == (3, made[-1])
        assert force.pools == [pool]
        assert pool.up == 2
    finally:
        force.close()
