"""Checks before Ray is started, and one-line errors for Ray's start failures."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from roboalign_ray.config.paths import absolute_path
from roboalign_ray.foundation.failures import HostError, ReportedError, UserError, first_line, host_error
from roboalign_ray.foundation.storage.files import require_room

_SOCKET_PATH_BYTES = 107  # longest path of a Unix socket on Linux
# The path that Ray appends to its temporary folder: the longest names of a session and of a socket in it.
_SESSION = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SESSION_BYTES = (
    16_000_000  # logs and sockets of a short session; without this space Ray waits for half a minute
)
_START_ONE = "use 'local', or start one with: ray start --head"


def temporary_folder() -> Path:
    """The folder of Ray's logs and sockets."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def check_local_start(metrics_port: int = 0) -> None:
    """Check the requirements of a local Ray.

    They are: an existing current folder, a writable temporary folder with a short path, a home folder, a free port.

    Args:
        metrics_port: port of the metrics page; 0 takes a free one.

    Raises:
        ReportedError: a requirement is not met.
    """
    absolute_path(".", "roboalign")
    folder = temporary_folder()
    if len(os.fsencode(f"{folder}{_SESSION}")) > _SOCKET_PATH_BYTES:
        longest = _SOCKET_PATH_BYTES - len(_SESSION) - len("/ray")
        raise UserError(
            f"the temporary folder's path is too long for Ray's sockets ({len(str(folder.parent))} characters)",
            where=str(folder.parent),
            remedy=f"set RAY_TMPDIR to a folder whose path has at most {longest} characters",
        )
    _check_writable(folder, "the temporary folder", "set RAY_TMPDIR to a folder that can be written")
    require_room(folder, _SESSION_BYTES)
    _check_token_folder()
    if metrics_port:
        _check_port(metrics_port)


def start_failure(error: Exception, address: str) -> ReportedError:
    """The one-line error for an exception of `ray.init`."""
    if address != "local":
        return UserError(
            f"no Ray cluster at '{address}' ({first_line(error)})", where="cluster.address", remedy=_START_ONE
        )
    if (found := host_error(error, where=str(temporary_folder()))) is not None:
        return found
    about_memory = "memory" in str(error)
    return UserError(
        f"Ray cannot start on this machine ({first_line(error)})",
        where="cluster.object_store_gb" if about_memory else "cluster.address",
        remedy="use a smaller value"
        if about_memory
        else f"Ray's logs are in {temporary_folder()}/session_latest/logs",
    )


def check_reachable(address: str, timeout_s: float) -> None:
    """Check that a cluster's port answers, since Ray itself retries for minutes when it does not.

    Args:
        address: address of the cluster; "auto" reads RAY_ADDRESS, as Ray does.

    Raises:
        UserError: the address has a host and port that do not answer.
    """
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = named.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"no Ray cluster at '{named}' ({reason})",
            where="RAY_ADDRESS" if address == "auto" else "cluster.address",
            remedy=_START_ONE,
        ) from error


def _check_writable(folder: Path, what: str, remedy: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder on a read-only or special file system exists, but files cannot be created in it.
        probe = folder / f".roboalign-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HostError(
            f"{what} cannot be written ({error.strerror or error})", where=str(folder), remedy=remedy
        ) from error


def _check_token_folder() -> None:
    """Check the folder of Ray's authentication token: Ray reads it from the home folder, or creates one there."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    remedy = "set HOME to a folder that can be written, or RAY_AUTH_TOKEN_PATH to a file with a token"
    try:
        token = Path.home() / ".ray" / "auth_token"
        if token.is_file() and os.access(token, os.R_OK):
            return
    except (OSError, RuntimeError) as error:
        raise HostError(f"there is no home folder ({error})", where="HOME", remedy=remedy) from error
    _check_writable(token.parent, "Ray's folder for its token", remedy)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror})",
                where="telemetry.metrics_port",
                remedy="choose another, or 0 for a free one",
            ) from error
