"""Starts or joins a Ray cluster, makes actors from plain classes, and waits for results with a deadline.

Every remote wait goes through `settle` or `wait`: both end at a deadline, and their errors name the role and the
cause. A `ReportedError` in a worker (bad input, a full disk) is raised unchanged in the driver.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.job_config import JobConfig

from roboalign_ray.config import ClusterConfig, RoleConfig
from roboalign_ray.foundation.failures import Failed, ReportedError
from roboalign_ray.foundation.thread_waits import wait_environment
from roboalign_ray.foundation.weight_sync.manifest import WeightsRefused
from roboalign_ray.pipelines.capacity.cluster_nodes import usable_cpus
from roboalign_ray.pipelines.cluster.actor_deaths import death_reason, reported_reason
from roboalign_ray.pipelines.cluster.import_path import DriversPath
from roboalign_ray.pipelines.cluster.loopback import bound_to_loopback
from roboalign_ray.pipelines.cluster.ray_messages import hide_worker_messages, quieten_driver
from roboalign_ray.pipelines.cluster.ray_start import check_local_start, check_reachable, start_failure
from roboalign_ray.pipelines.cluster.signals import StartedProcesses, deferred, ending, interrupt

# Defaults for this process and all workers that it starts; values in the environment take precedence.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # the new Parquet reader starts up to 32 actors only to read footers
    "RAY_worker_niceness": "0",  # with Ray's default of 15, other processes on the machine starve a job's workers
    "TOKENIZERS_PARALLELISM": "false",
}
_CONNECT_S = 10.0  # limit for a cluster's port to answer
# Concurrency groups (separate threads), so that a worker answers heartbeats and weight offers while it computes.
BEAT, OFFER = "beat", "offer"


class RoleFailure(RuntimeError):
    """A role of the job failed: workers were lost, one raised an error, or a deadline passed."""


class WorkerLost(RoleFailure):
    """A worker's process or node was lost; a replacement may succeed."""


@contextmanager
def start_ray(
    cluster: ClusterConfig, *, dashboard: bool = False, worker_logs: bool = True, metrics_port: int = 0
) -> Iterator[None]:
    """Run the block with Ray: start it for "local", else join the cluster. If Ray already runs, do nothing.

    Args:
        dashboard: start Ray's dashboard (local clusters).
        worker_logs: show the workers' output.
        metrics_port: port of the page that Prometheus reads (local clusters); 0 takes a free one.

    Raises:
        ReportedError: Ray cannot start here, or the cluster at `cluster.address` cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    set_environment()
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": worker_logs}
    if cluster.address == "local":
        check_local_start(metrics_port)
        options |= {
            "num_cpus": usable_cpus(),  # the same count as in `plan`
            "object_store_memory": int(cluster.object_store_gb * 1e9),
            "include_dashboard": dashboard,
            "_metrics_export_port": metrics_port or None,
        }
    else:
        check_reachable(cluster.address, _CONNECT_S)
    with session(partial(_init, cluster, options), starts=cluster.address == "local"):
        hide_worker_messages(not worker_logs)
        try:
            yield
        finally:
            hide_worker_messages(False)


@contextmanager
def session(init: Callable[[], None], *, starts: bool = True) -> Iterator[None]:
    """Run the block with Ray, and shut Ray down with all its processes when the block is left, also by a signal.

    Args:
        init: starts or joins Ray.
        starts: whether `init` starts processes, which must be ended.

    Raises:
        KeyboardInterrupt: this process received SIGINT or SIGTERM.
    """
    started = StartedProcesses() if starts else None
    with ending():
        try:
            with deferred():
                try:
                    init()
                except SystemExit:  # Ray's reaction to SIGTERM while it starts
                    interrupt(signal.SIGTERM)
            yield
        finally:
            with deferred():
                ray.shutdown() if started is None else started.end(ray.shutdown)


def _init(cluster: ClusterConfig, options: Mapping[str, Any]) -> None:
    try:
        loopback = bound_to_loopback(cluster.address == "local" and not cluster.reachable)
        if not cluster.address.startswith("ray://"):
            options = {**options, "job_config": _job_config()}
        # Workers of a local cluster inherit this environment; workers of a joined cluster get only the thread settings.
        environment = {} if cluster.address == "local" else {"env_vars": wait_environment()}
        with loopback:
            ray.init(address=cluster.address, runtime_env=environment, **options)
    except Exception as error:
        raise start_failure(error, cluster.address) from error


def _job_config() -> JobConfig:
    config = JobConfig()
    config._py_driver_sys_path = DriversPath()  # Ray has no public setting for it
    return config


def set_environment() -> None:
    """Set environment variables for this process and for all nodes and workers that it starts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _interpreter_on_path()
    quieten_driver()


def _interpreter_on_path() -> None:
    """Add this Python's folder to PATH, so that workers find the tools in it (such as ninja)."""
    beside = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if beside not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, path]) if path else beside


def role_threads(role: RoleConfig) -> int:
    """Torch threads of one worker."""
    return role.threads or max(1, int(role.num_cpus))


def thread_environment(role: RoleConfig) -> dict[str, str]:
    """Thread settings for a worker's libraries: the number of threads, and how long idle threads spin."""
    threads = str(role_threads(role))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **wait_environment()}


def spawn(cls: type, role: RoleConfig, arguments: Sequence[dict[str, Any]]) -> list[Any]:
    """Start one actor per entry of `arguments` (keyword arguments of `cls`), with the role's resources.

    Ray restarts no actor and repeats no call. The caller sees every loss and decides what to do.
    """
    make_remote: Any = ray.remote  # its annotations lack concurrency groups
    remote = make_remote(concurrency_groups={BEAT: 1, OFFER: 1})(cls).options(
        num_cpus=role.num_cpus,
        num_gpus=role.num_gpus,
        resources=role.resources or None,
        accelerator_type=role.accelerator_type,
        max_restarts=0,
        max_task_retries=0,
        runtime_env={"env_vars": thread_environment(role)},
    )
    return [remote.remote(**keywords) for keywords in arguments]


def stop(actors: Sequence[Any]) -> None:
    """End actors for good."""
    for actor in actors:
        ray.kill(actor, no_restart=True)


def settle(refs: Sequence[Any], deadline_s: float, what: str, *, numbered: bool = True) -> list[Any]:
    """Wait for the value of every reference; `Failed` if its worker was lost or raised an error.

    Args:
        refs: references of one stage, one per worker.
        deadline_s: deadline for all of them together, seconds.
        what: name of the stage in errors ("rollouts").
        numbered: whether errors also give the number of the reference.

    Raises:
        ReportedError: a worker raised one, or could not start because a module is missing.
        RoleFailure: the deadline passed.
    """
    ends = time.monotonic() + deadline_s
    names = [f"{what} {n + 1}/{len(refs)}" if numbered else what for n in range(len(refs))]
    return [_settle_one(ref, ends, deadline_s, name) for ref, name in zip(refs, names, strict=True)]


def wait(refs: Sequence[Any], deadline_s: float, what: str) -> list[Any]:
    """Wait for the values of all references. Like `settle`, but any failure is raised.

    Raises:
        ReportedError: a worker raised one, or could not start because a module is missing.
        WorkerLost: a worker was lost.
        RoleFailure: the deadline passed, or a worker raised another error.
    """
    values = settle(refs, deadline_s, what)
    for value in values:
        if isinstance(value, Failed):
            raise (WorkerLost if value.kind == "worker_lost" else RoleFailure)(value.reason)
    return values


def _settle_one(ref: Any, ends: float, deadline_s: float, what: str) -> Any:
    try:
        return ray.get(ref, timeout=max(0.0, ends - time.monotonic()))
    except GetTimeoutError as error:
        raise RoleFailure(
            f"{what}: no answer within {deadline_s:g} s; the worker is stuck or the cluster has no room for it "
            "(see 'ray status'), or the role's deadline_s is too short"
        ) from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ReportedError):
            raise cause from error
        return Failed(f"{what}: {type(cause).__name__}: {_first_line(cause)}", _kind_of(cause))
    except RayActorError as error:
        reason = death_reason(error)
        if reported := reported_reason(reason, what):
            raise reported from error
        return Failed(f"{what}: worker lost ({reason})", "worker_lost")
    except RayError as error:
        return Failed(f"{what}: {type(error).__name__}: {_first_line(error)}", "ray_error")


def _kind_of(cause: BaseException | None) -> str:
    if isinstance(cause, WeightsRefused):
        return "weights"
    return "ray_error" if isinstance(cause, RayError) else "worker_error"  # for example, an argument was lost


def _first_line(error: BaseException | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
