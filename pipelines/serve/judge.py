"""The judge as a web service on Ray Serve; the number of replicas follows the number of requests.

    client ──HTTP──► WebServer, JudgeFront ──► JudgeService ×min…max     429 if too many would wait
                     in this process           cluster.scorer's or cluster.teacher's resources each

`run_serve` implements the command. A Serve config file uses `roboalign_ray.pipelines.serve.judge:application`: the
front then runs behind Serve's own web server, on every node.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatus

from roboalign_ray.actors.judge_front import LOOPBACK_NAMES, JudgeIngress, bearer_token, front_of
from roboalign_ray.actors.judge_service import JudgeService
from roboalign_ray.actors.served_judge import JudgeKind
from roboalign_ray.config import FrozenConfig, JobConfig, RoleConfig, ServingConfig
from roboalign_ray.config.loading import resolve_job
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, role_threads, start_ray, thread_environment
from roboalign_ray.pipelines.cluster.weight_folders import student_folder
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.serve.web_server import HttpLimits, WebServer

NAME = "judge"
_START_S = 1800.0  # limit for loading a model
_LOOK_S = 0.5  # interval between checks of a starting application
_FRONT_CPUS = 0.1
# A replica allocates and frees tensors of megabytes a hundred times per second. By default, glibc returns each to the
# system and gets it again page by page, which takes a quarter of a judgement's time. (Thresholds in bytes; 32 MB is the
# largest effective value.)
_KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_TRIES = 2  # failed starts of a replica until the application has failed


class ServedJob(FrozenConfig):
    """The `args` of a Serve config file.

    Attributes:
        profile: name of a profile, or the path of a .yaml file.
        judge: which judge to serve.
        overrides: each "key=value".
    """

    profile: str = "demo"
    judge: JudgeKind = "student"
    overrides: tuple[str, ...] = ()


def application(arguments: dict[str, Any]) -> Application:
    """The application for a Serve config file: the judge, with its front behind Serve's own web server.

    Args:
        arguments: fields of `ServedJob`.

    Raises:
        UserError: an argument is wrong, or the judge cannot be loaded.
    """
    wanted = ServedJob.model_validate(arguments)
    config = resolve_job(wanted.profile, wanted.overrides)
    return ingress_application(config, judge_application(config, wanted.judge))


def ingress_application(config: JobConfig, judge: Application) -> Application:
    """A judge's application with its front, for Serve's own web server."""
    make_deployment: Any = serve.deployment
    front = make_deployment(
        name=f"{NAME}-front",
        max_ongoing_requests=config.serving.most_connections,
        ray_actor_options={"num_cpus": _FRONT_CPUS},
    )(JudgeIngress)
    return front.bind(config.serving, judge)


def judge_application(config: JobConfig, judge: JudgeKind) -> Application:
    """The replicas of a job's judge as a Serve application, to be called with a handle.

    Raises:
        UserError: there is no such model, as far as can be checked without loading it.
    """
    student = student_folder(config) if judge == "student" else None
    if judge == "teacher":
        _check_teacher(config)
    role = config.cluster.scorer if judge == "student" else config.cluster.teacher
    make_deployment: Any = serve.deployment  # its annotations do not allow plain options
    deployment = make_deployment(name=NAME, ray_actor_options=_resources(role), **_options(config))(
        JudgeService
    )
    return deployment.bind(judge, config, student, role_threads(role))


def run_serve(
    config: JobConfig, judge: JudgeKind, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve until the process receives SIGINT or SIGTERM.

    Args:
        config: the `serving` section and the judge's section are used.
        judge: which judge to serve.
        host, port: address to listen on.
        ready: called with the service's address when it answers.

    Raises:
        UserError: the judge cannot be loaded, the port is taken, or the token cannot be used.
        RoleFailure: the replicas do not start.
    """
    config = check_ready(Preflight(f"serve {judge}", config))
    served = judge_application(config, judge)
    bearer_token(config.serving)
    web = WebServer(host, port)
    try:
        # In this order, since Ray also sets signal handlers.
        with start_ray(config.cluster, worker_logs=False), _stopped() as stop:
            _serve(config, served, web, stop, ready)
    finally:
        web.stop()


def _serve(
    config: JobConfig,
    served: Application,
    web: WebServer,
    stop: threading.Event,
    ready: Callable[[str], None],
) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the front reports a lost replica once
    serve.start(proxy_location="Disabled")
    try:
        serve.run_many(
            [serve.RunTarget(served, name=NAME, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait_until_up(stop)
        if not stop.is_set():
            _open(config, web)
            ready(f"http://{_in_address(web.host)}:{web.port}")
        stop.wait()
        web.stop()
    finally:
        # A local cluster and Serve end with this process. A separate shutdown of Serve would kill its controller while
        # calls to it are pending, and Ray would report each of them.
        if config.cluster.address != "local":
            serve.delete(NAME)


def _open(config: JobConfig, web: WebServer) -> None:
    """Judge a few synthetic videos, since the first is much slower than the others; then accept requests."""
    serving = config.serving
    handle = serve.get_app_handle(NAME)
    front = front_of(handle, serving, _allowed_hosts(serving, web.host), _notify)
    video = _synthetic_video()

    async def warm_up() -> None:
        # In the web server's loop: a second thread would compete with it, in time slices of five milliseconds.
        handle._init(_run_router_in_separate_loop=False)
        await front.warm_up(video, "video/mp4", "move the gripper")

    limits = HttpLimits(
        headers_s=serving.headers_s,
        request_s=serving.timeout_s,
        headers_bytes=serving.largest_headers_kb * 1000,
        connections=serving.most_connections,
    )
    web.start(front, front.refusal, limits, front.watched, warm_up, _START_S)


def _notify(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _allowed_hosts(serving: ServingConfig, host: str) -> tuple[str, ...]:
    if serving.allowed_hosts:
        return serving.allowed_hosts
    # A foreign web page can make its own host name point to this address and so reach a service on loopback.
    return LOOPBACK_NAMES if host in LOOPBACK_NAMES else ()


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _synthetic_video() -> bytes:
    """An encoded video of 16 frames of 64x64 with a moving bright square."""
    frames = np.full((16, 64, 64, 3), 96, np.uint8)
    for number, frame in enumerate(frames):
        frame[24:40, 2 * number : 2 * number + 16] = (200, 160, 40)
    return encode_video(frames, 10.0)


def _options(config: JobConfig) -> dict[str, Any]:
    serving = config.serving
    return {
        "max_ongoing_requests": serving.most_requests,
        "max_queued_requests": serving.most_requests,
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
    options: dict[str, Any] = {
        "num_cpus": role.num_cpus,
        "num_gpus": role.num_gpus,
        "runtime_env": {"env_vars": {**thread_environment(role), **_KEEPS_MEMORY}},
    }
    if role.resources:
        options["resources"] = dict(role.resources)
    if role.accelerator_type:
        options["accelerator_type"] = role.accelerator_type
    return options


def _check_teacher(config: JobConfig) -> None:
    """Raise UserError if there is no model, as far as can be checked without loading it."""
    from roboalign_ray.judge.teacher.backends import open_teacher

    check_ready(Preflight("serve teacher", config), room=False)
    if config.teacher.backend == "openai":
        open_teacher(config.teacher)


def _wait_until_up(stop: threading.Event) -> None:
    """Wait until all initial replicas answer, or until `stop` is set.

    Raises:
        RoleFailure: the replicas cannot be started in time.
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
                f"the judge is not up after {_START_S:g} s; does the cluster have room for it (see 'ray status')?"
            )


def _cause(message: str) -> str:
    """The last line of a traceback, or a default text."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


@contextmanager
def _stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set during the block."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
