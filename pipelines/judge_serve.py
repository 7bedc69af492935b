"""The judge as a web service on Ray Serve: many may ask at once, replicas come and go with their number.

    client ──HTTP──► Serve's front end ──► JudgeService ×min…max     429 where too many wait
                     one per node          cluster.scorer's or cluster.teacher's resources each

`application` is what a Serve config file names (`pipelines.judge_serve:application`); `run_serve` is the command.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatus

from actors.judge_service import JudgeKind, JudgeService
from pipelines.runtime import RoleFailure, role_threads, start_ray
from pipelines.weights import student_folder
from roboalign_ray.config import FrozenConfig, JobConfig, RoleConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError

NAME = "judge"
_START_S = 1800.0  # longest wait for a model to be loaded
_LOOK_S = 0.5  # between looks at an application that is starting
_TRIES = 2  # starts of a replica before the application has failed


class ServedJob(FrozenConfig):
    """What a Serve config file's `args` say.

    Attributes:
        profile: a profile's name, or the path of a .yaml file.
        judge: who judges.
        overrides: "key=value" each.
    """

    profile: str = "demo"
    judge: JudgeKind = "student"
    overrides: tuple[str, ...] = ()


def application(arguments: dict[str, Any]) -> Application:
    """The application of a Serve config file.

    Args:
        arguments: of `ServedJob`.

    Raises:
        UserError: an argument is wrong, or the judge cannot be loaded.
    """
    wanted = ServedJob.model_validate(arguments)
    return judge_application(load_job(wanted.profile, wanted.overrides), wanted.judge)


def judge_application(config: JobConfig, judge: JudgeKind) -> Application:
    """The judge of a job as a Serve application.

    Raises:
        UserError: there is no such model, as far as that shows before it is loaded.
    """
    student = student_folder(config) if judge == "student" else None
    if judge == "teacher":
        _check_teacher(config)
    role = config.cluster.scorer if judge == "student" else config.cluster.teacher
    make_deployment: Any = serve.deployment  # its annotations know no plain options
    deployment = make_deployment(name=NAME, ray_actor_options=_resources(role), **_options(config))(
        JudgeService
    )
    return deployment.bind(judge, config, student, role_threads(role))


def run_serve(
    config: JobConfig, judge: JudgeKind, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve until the process is asked to end (SIGINT, SIGTERM).

    Args:
        config: its `serving` section, and the judge's.
        judge: who judges.
        host, port: of the front ends.
        ready: told the service's address once it answers.

    Raises:
        UserError: the judge cannot be loaded, or the port is taken.
        RoleFailure: the replicas do not start.
    """
    if config.cluster.address == "local":
        _check_port(host, port)
    served = judge_application(config, judge)
    with (
        start_ray(config.cluster, worker_logs=False),
        _stopped() as stop,
    ):  # in this order: Ray sets handlers too
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run_many(
                [serve.RunTarget(served, name=NAME)],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            _wait_until_up(stop)
            if not stop.is_set():
                ready(f"http://{host}:{port}")
            stop.wait()
        finally:
            serve.delete(NAME)
            if config.cluster.address == "local":
                serve.shutdown()


def _options(config: JobConfig) -> dict[str, Any]:
    serving = config.serving
    return {
        "max_ongoing_requests": serving.requests_per_replica,
        "max_queued_requests": serving.queue,
        "backpressure_config": {"status_code": 429, "retry_after_s": serving.retry_after_s},
        "autoscaling_config": {
            "min_replicas": serving.min_replicas,
            "initial_replicas": max(1, serving.min_replicas),
            "max_replicas": serving.max_replicas,
            "target_ongoing_requests": serving.target_requests,
            "upscale_delay_s": serving.upscale_delay_s,
            "downscale_delay_s": serving.downscale_delay_s,
        },
        "max_constructor_retry_count": _TRIES,
    }


def _resources(role: RoleConfig) -> dict[str, Any]:
    threads = str(role_threads(role))
    asked: dict[str, Any] = {
        "num_cpus": role.num_cpus,
        "num_gpus": role.num_gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
    }
    if role.resources:
        asked["resources"] = dict(role.resources)
    if role.accelerator_type:
        asked["accelerator_type"] = role.accelerator_type
    return asked


def _check_teacher(config: JobConfig) -> None:
    """Raises UserError where it shows without loading a model that there is none."""
    from roboalign_ray.judge.teacher.opening import open_teacher
    from roboalign_ray.judge.teacher.sources import check_adapter, model_source

    teacher = config.teacher
    if teacher.backend == "openai":
        open_teacher(teacher)
        return
    model_source(teacher.model)
    if teacher.adapter:
        check_adapter(teacher.adapter, teacher.model)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} ({error.strerror})", where="--port", remedy="choose another"
            ) from error


def _wait_until_up(stop: threading.Event) -> None:
    """Wait until every replica that is wanted at first answers, or until `stop`.

    Raises:
        RoleFailure: they cannot be started, or not in time.
    """
    ends = time.monotonic() + _START_S
    while not stop.wait(_LOOK_S):
        found = serve.status().applications.get(NAME)
        status = found.status if found else ApplicationStatus.NOT_STARTED
        if status == ApplicationStatus.RUNNING:
            return
        if found and status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise RoleFailure(f"the judge cannot be served: {_cause(found.message)}")
        if time.monotonic() > ends:
            raise RoleFailure(
                f"the judge is not up after {_START_S:g} s; has the cluster room for it (see 'ray status')?"
            )


def _cause(message: str) -> str:
    """The last line of a traceback, or what there is."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


@contextmanager
def _stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, for the length of the block."""
    stop = threading.Event()
    asked = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in asked}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
