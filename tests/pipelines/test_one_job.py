"""Every job that writes into a folder refuses one that another job works in, before it looks at anything else."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.folder_lock import LOCK, FolderInUse, folder_lock, store_lock

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = (
    "align.job.run_align",
    "train.world_model.run_pretrain",
    "train.student.run_distill",
    "evaluate.job.run_evaluate",
    "train.teacher.run_judge_train",
    "label.job.run_label",
    "label.score_job.run_scoring",
    "label.score_report.write_score_report",
    "chaos.job.run_chaos",
    "evaluate.reproduce.run_alignment",
    "evaluate.reproduce.run_hacking",
    "evaluate.demo.run_demo",
    "evaluate.persistence.run_persistence",
    "evaluate.executability.run_calibrate",
    "evaluate.executability.run_measure_executability",
    "planning.rows.run_table",
    "planning.run_agent.run_agent",
    "train.progress.run_train_progress",
)
STORES = (
    "label.build_bench.build_bench",
    "episodes.convert.convert",
    "episodes.generate.generate",
    "rollout.job.run_rollout",
)


@pytest.fixture
def in_use(tmp_path: Path) -> Iterator[Path]:
    """A folder, and a store's place, that another thread has."""
    import threading

    held, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with folder_lock(tmp_path / "out"), store_lock(tmp_path / "out"):
            held.set()
            ended.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    yield tmp_path / "out"
    ended.set()
    thread.join()


@pytest.mark.parametrize("name", [*RUNS, *STORES])
def test_a_folder_in_use_is_refused_first(in_use: Path, name: str) -> None:
    module, _, function = name.rpartition(".")
    job: Any = getattr(importlib.import_module(f"roboalign_ray.pipelines.{module}"), function)
    needed = [p for p in inspect.signature(job).parameters.values() if p.default is p.empty]
    arguments = {parameter.name: None for parameter in needed} | {"out": in_use}
    with pytest.raises(FolderInUse, match="in use"):
        job(**arguments)


def test_no_job_with_a_folder_is_forgotten() -> None:
    """Public functions of jobs with an argument `out` hold it, or are called by one that does."""
    inner = {
        "label_items",
        "crew_of",
        "write_report",
        "write_selection",
        "prepare_folder",
        "run_train_job",
        "command_of",
        "judged_section",
        "tokenizer_job",
        "world_model_job",
        "denoiser_job",
        "inverse_dynamics_job",
        "progress_job",
    }
    found = set()
    for path in sorted((REPOSITORY / "pipelines").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            names = [a.arg for a in [*node.args.args, *node.args.kwonlyargs]]
            if "out" in names and path.parent.name != "cli":
                found.add(f"{path.parent.name}.{path.stem}.{node.name}")
    assert {name for name in found if name.split(".")[-1] not in inner} - {*RUNS, *STORES} == set()


def test_the_command_line_refuses_in_one_line(in_use: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["align", "demo", "--out", str(in_use)],
        ["pretrain", "demo", "--out", str(in_use)],
        ["evaluate", "demo", "--out", str(in_use)],
        ["demo", "--fresh", "--out", str(in_use)],
        ["judge", "select", "--out", str(in_use)],
    ):
        line = refused(words, in_use.parent, capsys)
        assert str(in_use) in line
        assert "in use" in line


def test_a_fresh_demo_empties_the_folder_that_it_has_locked(tmp_path: Path) -> None:
    from roboalign_ray.pipelines.evaluate.demo import JOURNAL, prepare_folder

    out = tmp_path / "demo"
    for _ in range(2):  # a folder that is new, and one of an earlier run
        with folder_lock(out):
            prepare_folder(out, fresh=True)
            assert [path.name for path in out.iterdir()] == [LOCK]
        (out / "logs").mkdir(parents=True)  # a folder that was made for the lock alone went with it
        (out / JOURNAL).write_text("{}\n")
    (out / "mine.txt").write_text("kept")
    with folder_lock(out), pytest.raises(UserError, match=r"holds 'mine\.txt', which no run wrote"):
        prepare_folder(out, fresh=True)
    assert (out / "logs").is_dir()
