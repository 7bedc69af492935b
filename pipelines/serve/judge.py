"""The judge as a web service on Ray Serve: many may ask at once, replicas come and go with their number.

    client ──HTTP──► WebServer, JudgeFront ──► JudgeService ×min…max     429 where too many would wait
                     in this process           cluster.scorer's or cluster.teacher's resources each

`run_serve` is the command. A Serve config file names `roboalign_ray.pipelines.serve.judge:application`: there the front
stands behind Serve's own web server, on every node.
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
from roboalign_ray.actors.judge_service import JudgeKind, JudgeService
from roboalign_ray.config import FrozenConfig, JobConfig, RoleConfig, ServingConfig
from roboalign_ray.config.loading import resolve_job
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, role_threads, start_ray, thread_environment
from roboalign_ray.pipelines.cluster.weight_folders import student_folder
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.serve.web_server import HttpLimits, WebServer

NAME = "judge"
_START_S = 1800.0  # longest wait for a model to be loaded
_LOOK_S = 0.5  # between looks at an application that is starting
_FRONT_CPUS = 0.1
# A replica makes and frees tensors of megabytes a hundred times a second. glibc would give each back to the system and
# fetch it anew, page by page: a quarter of a judgement's time. (Thresholds in bytes; 32 MB is the highest that counts.)
_KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_TRIES = 2  # starts of a replica before the application has failed


class ServedJob(FrozenConfig):
    """What a Serve config file's `args` say.

    Attributes:
        profile: a profile's name, or the path of a .yaml file.
        judge: which judge.
        overrides: "key=value" each.
    """

    profile: str = "demo"
    judge: JudgeKind = "student"
    overrides: tuple[str, ...] = ()


def application(arguments: dict[str, Any]) -> Application:
    """The application of a Serve config file: the judge, with its front behind Serve's own web server.

    Args:
        arguments: of `ServedJob`.

    Raises:
        UserError: an argument is wrong, or the judge cannot be loaded.
    """
    wanted = ServedJob.model_validate(arguments)
    config = resolve_job(wanted.profile, wanted.overrides)
    return ingress_application(config, judge_application(config, wanted.judge))


def ingress_application(config: JobConfig, judge: Application) -> Application:
    """A judge's application behind its front, for Serve's own web server."""
    make_deployment: Any = serve.deployment
    front = make_deployment(
        name=f"{NAME}-front",
        max_ongoing_requests=config.serving.most_connections,
        ray_actor_options={"num_cpus": _FRONT_CPUS},
    )(JudgeIngress)
    return front.bind(config.serving, judge)


def judge_application(config: JobConfig, judge: JudgeKind) -> Application:
    """The replicas of a job's judge as a Serve application, to be called by a handle.

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
        judge: which judge.
        host, port: where this process listens.
        ready: called with the service's address once it answers.

    Raises:
        UserError: the judge cannot be loaded, the port is taken, or the token cannot be used.
        RoleFailure: the replicas do not start.
    """
    config = check_ready(Preflight(f"serve {judge}", config))
    served = judge_application(config, judge)
    bearer_token(config.serving)
    web = WebServer(host, port)
    try:
        # In this order: Ray sets handlers of signals too.
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
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the front tells of a lost replica once
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
        # A local cluster ends with this process, and Serve with it; asked to end by itself, Serve's controller is
        # killed while calls to it are under way, and Ray reports each of them.
        if config.cluster.address != "local":
            serve.delete(NAME)


def _open(config: JobConfig, web: WebServer) -> None:
    """Accept requests, once the judge has judged a few made-up videos: the first is far slower than all others."""
    serving = config.serving
    handle = serve.get_app_handle(NAME)
    front = front_of(handle, serving, _allowed_hosts(serving, web.host), _notify)
    video = _made_up_video()

    async def warm_up() -> None:
        # In the web server's own loop: a second thread would take turns with it, five milliseconds each.
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
    # A page of another site may let its own name point here, and so reach what listens on loopback only.
    return LOOPBACK_NAMES if host in LOOPBACK_NAMES else ()


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _made_up_video() -> bytes:
    """16 frames of 64x64: a bright square that moves."""
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
    asked: dict[str, Any] = {
        "num_cpus": role.num_cpus,
        "num_gpus": role.num_gpus,
        "runtime_env": {"env_vars": {**thread_environment(role), **_KEEPS_MEMORY}},
    }
    if role.resources:
        asked["resources"] = dict(role.resources)
    if role.accelerator_type:
        asked["accelerator_type"] = role.accelerator_type
    return asked


def _check_teacher(config: JobConfig) -> None:
    """Raises UserError where it shows without loading a model that there is none."""
    from roboalign_ray.judge.teacher.backends import open_teacher

    check_ready(Preflight("serve teacher", config), room=False)
    if config.teacher.backend == "openai":
        open_teacher(config.teacher)


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
