"""Waits that end, and errors that name their cause."""

from __future__ import annotations

import os
import sys
import time

import pytest
import ray
from ray import cloudpickle

from roboalign_ray.config import ClusterConfig, RoleConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, settle, spawn, start_ray, stop, wait

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    def __init__(self, number=0):
        self.number = number

    def answer(self):
        return self.number

    def refuse(self):
        raise UserError("no such thing", where="here", remedy="ask for another")

    def stumble(self):
        raise ZeroDivisionError("by zero")

    def die(self):
        os._exit(1)

    def sleep(self):
        time.sleep(60)

    def threads(self):
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
        return [os.environ.get(name) for name in names]


def test_a_cluster_that_is_not_there_is_told_at_once():
    assert not ray.is_initialized()
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(UserError, match=r"cluster\.address"), start_ray(ClusterConfig(address=address)):
            pass


@pytest.fixture(scope="module")
def workers():
    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False)
    actors = spawn(
        Worker, RoleConfig(num_cpus=0.25, threads=3, max_restarts=0), [{"number": n} for n in range(4)]
    )
    yield actors
    stop(actors)
    ray.shutdown()


def test_values_come_in_order(workers):
    assert wait([actor.answer.remote() for actor in workers[:3]], 60, "answers") == [0, 1, 2]


def test_threads_follow_the_role_and_wait_as_the_drivers_do(workers):
    ours = [os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]]
    assert wait([workers[0].threads.remote()], 60, "threads") == [["3", "3", *ours]]


def test_bad_input_found_by_a_worker_is_told_as_such(workers):
    with pytest.raises(UserError) as caught:
        settle([workers[0].refuse.remote()], 60, "answers")
    assert caught.value.line() == "here: no such thing; ask for another"


def test_an_error_in_one_worker_is_a_value_beside_the_others(workers):
    good, bad = settle([workers[0].answer.remote(), workers[1].stumble.remote()], 60, "answers")
    assert good == 0
    assert isinstance(bad, Failed)
    assert bad.kind == "worker_error"
    assert "answers 2/2: ZeroDivisionError: by zero" in bad.reason
    with pytest.raises(RoleFailure, match="ZeroDivisionError"):
        wait([workers[1].stumble.remote()], 60, "answers")


def test_a_lost_worker_is_a_value_that_says_so(workers):
    [lost] = settle([workers[3].die.remote()], 60, "answers")
    assert isinstance(lost, Failed)
    assert lost.kind == "worker_lost"


def test_a_passed_deadline_is_an_error_that_names_the_stage(workers):
    with pytest.raises(RoleFailure, match=r"naps 1/1: no answer within 0\.5 s"):
        wait([workers[2].sleep.remote()], 0.5, "naps")


def test_a_running_ray_is_used_and_left_alone(workers):
    with start_ray(ClusterConfig()):
        assert ray.is_initialized()
    assert ray.is_initialized()
