"""Ray that cannot start on a machine: one line that says why, before Ray is tried."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import ray

from roboalign_ray.config import ClusterConfig
from roboalign_ray.foundation.failures import HostError, ReportedError, UserError
from roboalign_ray.pipelines.cluster.ray_start import start_failure
from roboalign_ray.pipelines.cluster.runtime import start_ray


@pytest.fixture(autouse=True)
def never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def told(cluster: ClusterConfig | None = None, **options: int) -> str:
    with pytest.raises(ReportedError) as caught, start_ray(cluster or ClusterConfig(), **options):
        pass
    assert "\n" not in caught.value.line()
    return caught.value.line()


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_path_too_long_for_sockets(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 80)
    monkeypatch.setenv(variable, str(long))
    line = told()
    assert "too long for Ray's sockets" in line
    assert "set RAY_TMPDIR" in line
    assert not long.exists()


def test_the_longest_path_that_fits_is_what_sockets_take() -> None:
    """A Unix socket's path has 107 bytes: the advice's length and one more, tried with a socket."""
    from roboalign_ray.pipelines.cluster.ray_start import _SESSION, _SOCKET_PATH_BYTES

    for surplus, fits in ((0, True), (1, False)):
        root = "/" + "x" * (_SOCKET_PATH_BYTES - len(_SESSION) - len("/ray") - 1 + surplus)
        path = f"{root}/ray{_SESSION}"
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError) as caught:
            probe.bind(path)  # its folder does not exist: a path that fits fails by that
        assert ("too long" in str(caught.value)) != fits


def test_a_full_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/tmp")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # pytest's own folders are too long for sockets
        monkeypatch.setenv("RAY_TMPDIR", short)
        assert f"{short}/ray: has 1.0 MB left on its disk" in told()


def test_a_temporary_folder_that_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    assert "the temporary folder cannot be written" in told()


def test_a_temporary_folder_that_takes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    assert "the temporary folder cannot be written" in told()


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_a_home_that_takes_no_file(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    line = told()
    assert "Ray's folder for its token cannot be written" in line
    assert "set HOME" in line


def test_a_token_from_elsewhere_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 40)
    with pytest.raises(UserError, match="Ray was started"), start_ray(ClusterConfig()):
        pass


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder has been removed" in told()


def test_a_metrics_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} cannot be used" in told(metrics_port=port)


def test_a_dead_cluster_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert told(ClusterConfig(address="auto")).startswith("RAY_ADDRESS: no Ray cluster at '127.0.0.1:1'")
    with pytest.raises(UserError, match="Ray was started"), start_ray(ClusterConfig()):
        pass  # a local Ray does not look at it


def test_what_ray_says_of_memory_is_about_the_object_store() -> None:
    error = ValueError("Attempting to cap object store memory usage at 1000 bytes, but\nthe minimum is more")
    line = start_failure(error, "local").line()
    assert line.startswith("cluster.object_store_gb: Ray cannot start on this machine (Attempting to cap")
    assert "cluster at" not in line


def test_a_full_disk_is_the_machines_fault() -> None:
    found = start_failure(OSError(28, "No space left on device"), "local")
    assert isinstance(found, HostError)


def test_a_cluster_that_refuses_is_named() -> None:
    line = start_failure(ConnectionError("no token"), "auto").line()
    assert line.startswith("cluster.address: no Ray cluster at 'auto' (no token)")
