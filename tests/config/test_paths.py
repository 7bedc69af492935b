"""Paths in a job's settings: absolute from the folder that the command is started in, whatever else is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from roboalign_ray.config import ConfigError, JobConfig, RoleConfig
from roboalign_ray.config.loading import dump_yaml, load_job, resolve_job
from roboalign_ray.config.paths import with_absolute_paths

# Every setting that names a folder or file of the user's.
PATHS = (
    "tokenizer_weights",
    "world_model_weights",
    "episodes.store",
    "judge.weights",
    "judge.replay",
    "teacher.adapter",
    "alignment.checkpoints",
)
MODELS = ("teacher.model", "judge.student.text_encoder", "judge.student.vision_encoder")


def value(config: JobConfig, path: str) -> str:
    found = config
    for name in path.split("."):
        found = getattr(found, name)
    return str(found)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("text", ["runs/store", "my data/größe", "./x", "../x"])
def test_a_relative_path_counts_from_the_current_folder(key: str, text: str, here: Path) -> None:
    found = value(resolve_job("demo", [f"{key}={text}"]), key)
    assert Path(found) == here / text
    assert Path(found).is_absolute()


@pytest.mark.parametrize("key", [*PATHS, *MODELS])
def test_the_home_folder_is_written_out(key: str, here: Path) -> None:
    assert value(resolve_job("demo", [f"{key}=~/x"]), key) == f"{here}/home/x"


def test_a_profile_elsewhere_still_counts_from_the_current_folder(here: Path) -> None:
    (here / "profiles").mkdir()
    (here / "profiles/mine.yaml").write_text("extends: demo\nepisodes: {store: stores/mine}\n")
    assert resolve_job("profiles/mine.yaml").episodes.store == f"{here}/stores/mine"


@pytest.mark.parametrize("key", ["episodes.store", "alignment.checkpoints", "teacher.model"])
@pytest.mark.parametrize("uri", ["s3://bucket/run", "gs://b/x", "file:///tmp/x", "hdfs://h:1/x"])
def test_uris_stay(key: str, uri: str, here: Path) -> None:
    assert value(resolve_job("demo", [f"{key}={uri}"]), key) == uri


def test_keywords_models_names_and_absolute_paths_stay(here: Path) -> None:
    (here / "shipped").mkdir()
    (here / "hashed").mkdir()
    job = resolve_job("paper_rt1", ["episodes.store=shipped", "judge.weights=/a/b"])
    assert (job.episodes.store, job.judge.weights) == ("shipped", "/a/b")
    assert job.teacher.model == "Qwen/Qwen3-VL-8B-Thinking"
    assert job.judge.student.text_encoder == "hashed"
    assert job.alignment.checkpoints == ""
    assert job.teacher.adapter is None


def test_a_models_folder_is_told_from_a_models_name(here: Path) -> None:
    (here / "runs/teacher").mkdir(parents=True)
    assert resolve_job("demo", ["teacher.model=runs/teacher"]).teacher.model == f"{here}/runs/teacher"
    assert resolve_job("demo", ["teacher.model=runs/absent"]).teacher.model == "runs/absent"


def test_all_other_values_are_untouched_and_a_second_time_changes_nothing(here: Path) -> None:
    asked = ["episodes.store=a", "output=runs2", "cluster.rollout.accelerator_type=H100"]
    before, after = load_job("demo", asked), resolve_job("demo", asked)
    changed = before.model_copy(
        update={"episodes": before.episodes.model_copy(update={"store": f"{here}/a"})}
    )
    assert after == changed
    assert with_absolute_paths(after) == after
    (here / "again.yaml").write_text(dump_yaml(after))
    assert load_job("again.yaml") == after


def test_a_folder_that_is_gone_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match=r"episodes.store: the current folder has been removed"):
        resolve_job("demo", ["episodes.store=x"])
    assert resolve_job("demo", ["episodes.store=/x"]).episodes.store == "/x"


def test_a_home_that_nobody_has_is_told(here: Path) -> None:
    with pytest.raises(ConfigError, match="names a home folder that is not known"):
        resolve_job("demo", ["episodes.store=~nobody-of-this-name/x"])


def test_roles_have_no_paths() -> None:
    assert with_absolute_paths(RoleConfig(accelerator_type="runs")) == RoleConfig(accelerator_type="runs")
