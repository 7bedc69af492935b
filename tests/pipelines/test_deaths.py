"""Why a worker died: from what Ray hands on of its constructor's exception."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from roboalign_ray.config import RoleConfig
from roboalign_ray.foundation.failures import Failed, HostError, ReportedError, UserError
from roboalign_ray.pipelines.cluster.actor_deaths import death_reason, reported_reason
from roboalign_ray.pipelines.cluster.runtime import settle, spawn, stop

# Workers cannot import a test module: its classes travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Doomed:
    """Its constructor raises."""

    def __init__(self, how: str) -> None:
        if how == "module":
            import nosuchmodule.part  # noqa: F401
        if how == "vllm":
            raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
        if how == "user":
            raise UserError("no such thing", where="here", remedy="ask for another")
        if how == "host":
            raise HostError("No space left on device", where="/x")
        if how == "cuda":
            raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check: that\n  it is there")
        if how == "file":
            Path("/nowhere/at/all").read_text()

    def answer(self) -> int:
        return 1


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


REPORTED = {
    "module": (
        UserError,
        "module 'nosuchmodule' is not installed; run on every node: pip install 'nosuchmodule'",
    ),
    "vllm": (
        UserError,
        "module 'vllm' is not installed; run on every node: pip install 'roboalign-ray[teacher]'",
    ),
    "user": (UserError, "here: no such thing; ask for another"),
    "host": (HostError, "/x: No space left on device"),
}


def asked(how: str) -> object:
    [actor] = spawn(Doomed, RoleConfig(num_cpus=0.1), [{"how": how}])
    try:
        return settle([actor.answer.remote()], 60, "start")[0]
    finally:
        stop([actor])


@pytest.mark.parametrize("how", REPORTED)
def test_what_is_no_bug_is_told_as_such(how: str) -> None:
    kind, line = REPORTED[how]
    with pytest.raises(ReportedError) as caught:
        asked(how)
    assert type(caught.value) is kind
    assert caught.value.line().endswith(line)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("cuda", "RuntimeError: Found no NVIDIA driver on your system."),
        ("file", "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"),
    ],
)
def test_other_causes_are_named(how: str, line: str) -> None:
    outcome = asked(how)
    assert isinstance(outcome, Failed)
    assert outcome.reason == f"start 1/1: worker lost ({line})"
    assert outcome.kind == "worker_lost"


def test_a_lost_process_has_ray_s_own_words() -> None:
    assert death_reason(RuntimeError("\nThe actor died unexpectedly.\n\tclass_name: A")) == (
        "The actor died unexpectedly."
    )
    assert reported_reason("The actor died unexpectedly.", "x") is None


def test_a_name_of_another_project_is_not_imported() -> None:
    assert reported_reason("os.error: x", "start") is None
    assert reported_reason("roboalign_ray.foundation.storage.files.Path: x", "start") is None
    assert reported_reason("roboalign_ray.no.such.Thing: x", "start") is None
