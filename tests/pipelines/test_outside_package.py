"""A package outside this repository, built and installed: its episode source and its rewards run in a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_job import EPISODES, make_tiny_job, square_episode

from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "outside-robot"
version = "1.0"
[project.entry-points."roboalign_ray.rewards"]
speed = "outside_robot.rewards:Speed"
[project.entry-points."roboalign_ray.episode_sources"]
squares = "outside_robot.sources:Squares"
""",
    "outside_robot/__init__.py": "",
    "outside_robot/rewards.py": '''
import numpy as np
from pydantic import BaseModel
from roboalign_ray.rewards.protocol import RewardInput, Scored


class Speed:
    """The commanded speed in metres per second, the same for all samples, and a tenth of a point per sample."""

    class Config(BaseModel):
        metres: float

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, inputs: RewardInput) -> list[Scored]:
        steps = np.linalg.norm(inputs.actions, axis=1) * self.config.metres
        told = {"fps": inputs.fps, "robot": float(inputs.embodiment == "toy")}
        told["rows"] = inputs.action_names.index("delta_row")
        return [Scored(float(steps.mean() * inputs.fps) + 0.1 * n, told) for n in range(len(inputs.generated))]


def brightness(inputs):
    return inputs.generated.mean(axis=(1, 2, 3, 4, 5)) / 255
''',
    "outside_robot/sources.py": """
from pathlib import Path
import numpy as np
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined


class Squares:
    name = "toy"

    def __init__(self, root: Path) -> None:
        self.files = sorted(root.glob("*.npz"))

    def episodes(self):
        for file in self.files:
            arrays = np.load(file, allow_pickle=False)
            if "frames" not in arrays:
                yield Quarantined(f"toy/{file.stem}", "holds no frames")
                continue
            yield Episode(
                episode_id=f"toy/{file.stem}",
                group_id=f"toy/{file.stem}",
                frames={"front": arrays["frames"], "back": arrays["frames"][:, ::-1]},
                actions=arrays["actions"],
                instruction="push the square",
                fps=10.0,
                embodiment="toy",
                action_names=("delta_row", "delta_column"),
                action_kinds=("delta", "delta"),
            )
""",
}
# What the console script does, but that the package's folder is put on the import path by the process itself.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from roboalign_ray.pipelines.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built and installed into a folder of its own."""
    pytest.importorskip("hatchling", reason="the build backend comes with the extra 'dev'")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in PACKAGE.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes in a format of their own, one of them broken."""
    folder = tmp_path_factory.mktemp("logs")
    for number in range(EPISODES):
        episode = square_episode(number)
        np.savez(folder / f"{number:02d}.npz", frames=episode.view(), actions=episode.actions)
    np.savez(folder / "99.npz", nothing=np.zeros(1))
    return folder


def command(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (cwd / "bin").mkdir(exist_ok=True)
    script = cwd / "bin/start.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, str(script), str(site), *words]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("name", ["squares", "outside_robot.sources:Squares"])
def test_its_source_becomes_a_store(name: str, site: Path, logs: Path, tmp_path: Path) -> None:
    words = ["episodes", "convert", str(logs), "store", "--format", name, "--json"]
    done = command(site, tmp_path, *words, "--view", "front", "--stride", "3")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["episodes"], told["frames"]) == (EPISODES, EPISODES * 4)
    assert told["quarantined"] == [{"episode_id": "toy/99", "reason": "holds no frames"}]
    store = open_store(tmp_path / "store")
    for number in (0, EPISODES - 1):
        read, made = store.read(f"toy/{number:02d}"), square_episode(number)
        assert list(read.frames) == ["front"]
        assert np.abs(read.view().astype(int) - made.view()[::3]).mean() < 4  # the store's video is lossy
        np.testing.assert_array_equal(read.actions[:3], made.actions[:9].reshape(3, 3, 2).sum(1))
        assert read.action_kinds == ("delta", "delta")


def test_a_source_that_does_not_fit_is_one_line(site: Path, logs: Path, tmp_path: Path) -> None:
    for name, expected in {
        "sqares": "--format: unknown episode source 'sqares'; did you mean 'squares'?",
        "outside_robot.sources:Path": "--format: 'outside_robot.sources:Path' is no episode source: it has no method",
        "outside_robot.source:Squares": "--format: there is no module 'outside_robot.source'",
    }.items():
        done = command(site, tmp_path, "episodes", "convert", str(logs), "store", "--format", name)
        assert done.returncode == 2
        assert expected in " ".join(done.stderr.split())
        assert not (tmp_path / "store").exists()


def test_its_rewards_and_its_episodes_run_in_an_alignment_job(site: Path, logs: Path, tmp_path: Path) -> None:
    cluster = {"rollout": {"workers": 1, "num_cpus": 0.5, "threads": 1, "deadline_s": 120}}
    parts = {"speed": {"weight": 2.0, "metres": 0.5}, "outside_robot.rewards:brightness": {"weight": 4.0}}
    job = make_tiny_job(tmp_path, alignment={"updates": 1}, cluster=cluster)
    # This process has no such package, so the profile is not made by it.
    tree = yaml.safe_load(dump_yaml(job)) | {"name": "outside", "reward": parts}
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(tree))
    converted = command(
        site, tmp_path, "episodes", "convert", str(logs), "own", "--format", "squares", "--view", "front"
    )
    assert converted.returncode == 0, converted.stderr

    wrong = ["--set", "reward.speed.metre=1"]
    refused = command(site, tmp_path, "align", "outside.yaml", "--quiet", "--out", "run", *wrong)
    assert refused.returncode == 2
    assert "reward.speed: unknown key 'metre'; did you mean 'metres'?" in " ".join(refused.stderr.split())

    done = command(
        site, tmp_path, "align", "outside.yaml", "--quiet", "--out", "run", "--set", "episodes.store=own"
    )
    assert done.returncode == 0, done.stderr
    entries = map(json.loads, (tmp_path / "run/rollouts.jsonl").read_text().splitlines())
    lines = [entry for entry in entries if "scores" in entry]
    assert len(lines) == 4
    for line in lines:
        name = PromptName.parse(line["prompt"])
        actions = square_episode(int(name.episode_id[-2:])).actions[name.start : name.start + 4]
        speed = 0.5 * np.linalg.norm(actions, axis=1).mean() * 10.0
        for number, score in enumerate(line["scores"]):
            assert score["speed"] == pytest.approx(speed + 0.1 * number, rel=1e-5)
            assert [score[f"speed/{part}"] for part in ("fps", "robot", "rows")] == [10.0, 1.0, 0.0]
            light = score["outside_robot.rewards:brightness"]
            assert 0 < light < 1
            assert score["total"] == pytest.approx(2 * score["speed"] + 4 * light)
