"""Jobs run from any folder: also from one that holds packages called like ours, and with such a one in PYTHONPATH."""

from __future__ import annotations

import colorsys
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.episodes.video import encode_video

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = ("actors", "cluster_configs", "config", "pipelines")
PACKAGE = REPOSITORY / "roboalign_ray"
# What the console script does: its own folder is first on the import path, not the current one.
SCRIPT = "import sys\nfrom roboalign_ray.pipelines.cli.main import main\nsys.exit(main())\n"
ASK = """
import ray
from roboalign_ray.pipelines.cluster.runtime import start_ray
from roboalign_ray.config import ClusterConfig

@ray.remote(num_cpus=0)
def where():
    import colorsys, torch
    import roboalign_ray.pipelines.train.batch_feed
    from roboalign_ray import actors, cluster_configs, config, pipelines
    return [module.__file__ for module in (actors, cluster_configs, config, pipelines, colorsys)]

with start_ray(ClusterConfig(object_store_gb=0.2)):
    told = ray.get([where.remote(), where.options(runtime_env={"env_vars": {"A": "1"}}).remote()])
print(told)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder with packages of all our names, none of which works."""
    for name in OURS:
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return tmp_path / "mine"


def started(
    script: str, mine: Path, *words: str, path: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """A script that lies elsewhere, started from the user's folder."""
    (mine.parent / "bin").mkdir(exist_ok=True)
    (mine.parent / "bin/start.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY)))}
    command = [sys.executable, str(mine.parent / "bin/start.py"), *words]
    return subprocess.run(command, cwd=mine, env=environment, capture_output=True, text=True, timeout=500)


def test_workers_import_our_packages(mine: Path) -> None:
    """The same holds of libraries: the user's modules of their names are on no import path of this process."""
    for name in ("numpy", "torch", "random", "colorsys"):
        (mine / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    done = started(ASK, mine)
    assert done.returncode == 0, done.stderr
    expected = [*(str(PACKAGE / name / "__init__.py") for name in OURS), colorsys.__file__]
    assert done.stdout.strip().splitlines()[-1] == str([expected, expected])


def test_workers_import_what_a_users_script_does(mine: Path) -> None:
    """A script's own folder is on its import path: its modules are the user's in workers too."""
    (mine / "colorsys.py").write_text("")
    done = started(ASK, mine, path=(REPOSITORY, mine))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(mine / "colorsys.py")) == 2


def test_packages_of_these_names_in_the_import_path_hide_none_of_ours(mine: Path) -> None:
    """Whatever a user's PYTHONPATH holds under these names, the command answers."""
    done = started(SCRIPT, mine, "version", path=(mine,))
    assert done.returncode == 0, done.stderr
    assert "roboalign-ray" in done.stdout


@pytest.mark.slow
def test_whole_jobs_run_from_there(mine: Path) -> None:
    """Alignment, evaluation and a judge, with relative paths."""
    from tiny_job import make_tiny_job

    cluster = {"rollout": {"workers": 1, "num_cpus": 0.5, "threads": 1, "deadline_s": 120}}
    job = make_tiny_job(
        mine, alignment={"updates": 1}, evaluation={"horizon": 4, "episodes": 1}, cluster=cluster
    )
    (mine / "tiny.yaml").write_text(dump_yaml(job))
    places = ("tokenizer_weights=tokenizer", "world_model_weights=world_model", "episodes.store=store")
    settings = [part for place in places for part in ("--set", place)]
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    (mine / "a.mp4").write_bytes(encode_video(frames, 5.0))
    for words in (
        ["align", "tiny.yaml", "--quiet", "--out", "run", *settings],
        ["evaluate", "tiny.yaml", "--quiet", "--out", "run", "--protocol", "one_step", *settings],
        ["judge", "score", "a.mp4", "-i", "open the drawer", "--judge", "student"],
    ):
        done = started(SCRIPT, mine, *words)
        assert done.returncode == 0, f"{words[0]}: {done.stderr}"
    assert (mine / "run/aligned/model.safetensors").is_file()
