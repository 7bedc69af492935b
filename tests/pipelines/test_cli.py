"""The command line: fast help, exit codes, and errors in one line however they were wrapped."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli import main as cli

HEAVY = ("torch", "ray", "transformers", "matplotlib", "metaworld", "pyarrow", "av")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom roboalign_ray.pipelines.cli.main import run\n"
        f"code = run(['--help'])\nprint([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "pretrain",
        "align",
        "evaluate",
        "demo",
        "plan",
        "version",
        "episodes",
        "episodes convert",
        "assets",
    ],
)
def test_every_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    assert "Usage: roboalign" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["pretrain", "align", "evaluate", "plan", "episodes generate"])
def test_help_of_jobs_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([*command.split(), "--help"])
    assert f"roboalign {command}" in capsys.readouterr().out.split("Examples", 1)[1]


def test_called_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    shown = capsys.readouterr()
    assert "Usage: roboalign" in shown.out + shown.err


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"].startswith("2.")


def test_plan_as_json(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    (tmp_path / "nodes.yaml").write_text("nodes: [{cpus: 2}]\n")
    assert cli.run(["plan", "demo", "--json", "--cluster", str(tmp_path / "nodes.yaml")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["placement"]["alignment"]["fits"] is True
    assert plan["config"]["name"] == "demo"


# --- exit codes ------------------------------------------------------------------------------------------------


def ends_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    broken = typer.Typer(pretty_exceptions_enable=False)

    @broken.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", broken)
    return cli.run([])


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


WRAPPED = {
    "bare": lambda bad: bad,
    "chained": lambda bad: caused(RuntimeError("in between"), bad),
    "chained twice": lambda bad: caused(ValueError("x"), caused(RuntimeError("y"), bad)),
    "in a group": lambda bad: ExceptionGroup("several", [ValueError("x"), bad]),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_bad_input_is_one_line_however_wrapped(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = UserError("holds no\n weights", where="runs/x", remedy="train one")
    assert ends_with(WRAPPED[how](bad), monkeypatch) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: runs/x: holds no weights; train one\n")


@pytest.mark.parametrize("how", WRAPPED)
def test_a_full_disk_is_one_line_however_wrapped(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "tmp/video.mp4")
    assert ends_with(WRAPPED[how](full), monkeypatch) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: tmp/video.mp4: No space left on device; free space")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["align", "demo", "--out", "x" * 300], ["plan", "demo", "--set", "episodes.store=" + "x" * 300]]
)
def test_a_name_longer_than_files_have_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(words) == 2
    line = capsys.readouterr().err
    assert "cannot be used (File name too long); give another path" in line
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["align", "demo"],
        ["judge", "label", "videos"],
        ["judge", "select", "demo", "runs/x"],
        ["bench", "build", "demo"],
    ],
    ids=" ".join,
)
def test_an_empty_folder_to_write_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*words, "--out", ""]) == 2
    assert capsys.readouterr().err == "error: --out: is empty; name a folder; '.' is the current one\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_failure_of_the_host_inside_a_ray_worker_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.exceptions import RayTaskError

    task_error = RayTaskError("score", "Traceback of the worker", error)
    for wrapped in (task_error, task_error.as_instanceof_cause()):
        assert ends_with(wrapped, monkeypatch) == 2
        line = capsys.readouterr().err
        assert line.startswith(("error: out of memory;", "error: Too many open files;"))


def test_a_table_stands_above_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = UserError("the gate is closed", where="student", details="| trial |\n|---|\n| blur |\n")
    assert ends_with(closed, monkeypatch) == 2
    assert capsys.readouterr().err == "| trial |\n|---|\n| blur |\nerror: student: the gate is closed\n"


def test_bad_input_inside_a_ray_worker_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's own wrappers, made as its workers make them, but without a cluster."""
    from ray.exceptions import RayTaskError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    bad = UserError("holds no weights", where="runs/x")
    task_error = RayTaskError("score", "Traceback of the worker", bad)
    kept = UserExceptionWithTraceback(bad, "Traceback of the worker")
    for error in (
        task_error,
        task_error.as_instanceof_cause(),
        WorkerGroupError("rank 1 failed", {1: kept}),
        ControllerError(task_error),
    ):
        assert ends_with(error, monkeypatch) == 2
        assert capsys.readouterr().err == "error: runs/x: holds no weights\n"


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(ZeroDivisionError("oops"), monkeypatch) == 1
    assert "Traceback" in capsys.readouterr().err


def test_bad_input_behind_a_bug_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug met while an input error was being handled is still a bug."""
    bug = KeyError("missing")
    bug.__context__ = UserError("handled already")
    assert ends_with(bug, monkeypatch) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupted_run_says_so(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends_with(error, monkeypatch) == 130


def test_a_folder_that_is_gone_is_one_line(tmp_path) -> None:
    """torch ends a process that it is imported into there, with words of its own."""
    code = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "from roboalign_ray.pipelines.cli.main import run; sys.exit(run(['plan', 'demo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: roboalign: the current folder has been removed; change into another folder\n"
    )


def test_a_command_may_choose_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends_with(typer.Exit(7), monkeypatch) == 7
