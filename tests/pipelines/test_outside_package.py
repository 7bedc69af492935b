"""A package outside this repository, built and installed: its episode source, rewards, world model and objective.

All four run in one alignment job. Conversion and refusals run in this process, the job as a command of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_job import EPISODES, make_tiny_job, square_episode
from toy_world_model import write_toy

from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.pipelines.cli.main import run

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = 0.01
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
[project.entry-points."roboalign_ray.world_models"]
toy = "outside_robot.world_model:ToyKind"
[project.entry-points."roboalign_ray.objectives"]
climb = "outside_robot.objectives:Climb"
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
    "outside_robot/world_model.py": (REPOSITORY / "tests/toy_world_model.py").read_text(),
    "outside_robot/objectives.py": '''
import json
import numpy as np
import torch
from outside_robot.world_model import write_toy
from roboalign_ray.alignment.objectives.protocol import Objective, OptimizerStep, PolicyModel


class Gain(PolicyModel):
    """The toy world model's only weight."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([gain]))

    def forward(self, weights):
        return self.gain * weights.sum()

    def inputs(self, item, device):
        return (item.to(device),)

    def weights(self):
        return {"gain": self.gain}

    def save(self, folder):
        write_toy(folder, views=1, gain=float(self.gain))


class Climb(Objective):
    """Minimises -gain * mean(advantage * sample number): the gain rises where later samples have better scores."""

    def open_policy(self, folder):
        return Gain(json.loads((folder / "toy.json").read_text())["gain"])

    def prepare(self, policy, groups, advantages, share):
        rows = [one.values * np.arange(len(one.values)) for one in advantages]
        part = np.concatenate(rows)[share.rank :: share.ranks]
        return OptimizerStep([torch.tensor(part, dtype=torch.float32)], sum(map(len, rows)))

    def loss(self, policy, item, size):
        loss = -policy.predict(item).sum() / size
        return loss, {"loss": loss.detach()}
''',
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


@pytest.fixture
def inside(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of commands that run in this process, which finds the package."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["squares", "outside_robot.sources:Squares"])
def test_its_source_becomes_a_store(
    name: str, inside: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["episodes", "convert", str(logs), "store", "--format", name, "--json"]
    assert run([*words, "--view", "front", "--stride", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["episodes"], told["frames"]) == (EPISODES, EPISODES * 4)
    assert told["quarantined"] == [{"episode_id": "toy/99", "reason": "holds no frames"}]
    store = open_store(inside / "store")
    for number in (0, EPISODES - 1):
        read, made = store.read(f"toy/{number:02d}"), square_episode(number)
        assert list(read.frames) == ["front"]
        assert np.abs(read.view().astype(int) - made.view()[::3]).mean() < 4  # the store's video is lossy
        np.testing.assert_array_equal(read.actions[:3], made.actions[:9].reshape(3, 3, 2).sum(1))
        assert read.action_kinds == ("delta", "delta")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sqares", "--format: unknown episode source 'sqares'; did you mean 'squares'?"),
        (
            "outside_robot.sources:Path",
            "--format: 'outside_robot.sources:Path' is no episode source: it has no method",
        ),
        ("outside_robot.source:Squares", "--format: there is no module 'outside_robot.source'"),
    ],
)
def test_a_source_that_does_not_fit_is_one_line(
    name: str, line: str, inside: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["episodes", "convert", str(logs), "store", "--format", name]) == 2
    assert line in " ".join(capsys.readouterr().err.split())
    assert not (inside / "store").exists()


def write_profile(folder: Path) -> None:
    """A profile of the package's parts. `load_job` would look for them in this process, so the tree is put together."""
    cluster = {"rollout": {"workers": 1, "num_cpus": 0.5, "threads": 1, "deadline_s": 120}}
    sizes = {"updates": 2, "prompts_per_update": 2, "held_out_prompts": 1, "evaluate_every": 2}
    job = make_tiny_job(folder, alignment={**sizes, "learning_rate": RATE}, cluster=cluster)
    tree = yaml.safe_load(dump_yaml(job))
    tree["name"], tree["world_model_weights"] = "outside", "toy"
    tree["alignment"]["objective"] = "climb"
    tree["reward"] = {
        "speed": {"weight": 2.0, "metres": 0.5},
        "outside_robot.rewards:brightness": {"weight": 4.0},
    }
    (folder / "outside.yaml").write_text(yaml.safe_dump(tree))
    write_toy(folder / "toy", views=1)


def test_its_parts_run_together_in_an_alignment_job(
    inside: Path, site: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(inside)
    assert run(["episodes", "convert", str(logs), "own", "--format", "squares", "--view", "front"]) == 0
    align = ["align", "outside.yaml", "--quiet", "--out", "run", "--set", "episodes.store=own"]
    assert run([*align, "--set", "reward.speed.metre=1"]) == 2
    line = "reward.speed: unknown key 'metre'; did you mean 'metres'?"
    assert line in " ".join(capsys.readouterr().err.split())

    script = inside / "bin/start.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(site), *align],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    entries = map(json.loads, (inside / "run/rollouts.jsonl").read_text().splitlines())
    lines = [entry for entry in entries if "scores" in entry]
    assert len(lines) == 4
    assert {version for line in lines for version in line["versions"]} == {0, 1}
    for line in lines:
        check_scores(line)
    # The gradient is the same in both updates, so AdamW moves the gain by its learning rate each time.
    gain = json.loads((inside / "run/aligned/toy.json").read_text())["gain"]
    assert gain == pytest.approx(1 + 2 * RATE, rel=1e-5)


def check_scores(line: dict[str, Any]) -> None:
    """Commanded speed in closed form; a quarter of the toy's picture is bright."""
    name = PromptName.parse(line["prompt"])
    actions = square_episode(int(name.episode_id[-2:])).actions[name.start : name.start + 4]
    speed = 0.5 * np.linalg.norm(actions, axis=1).mean() * 10.0
    for number, score in enumerate(line["scores"]):
        assert score["speed"] == pytest.approx(speed + 0.1 * number, rel=1e-5)
        assert [score[f"speed/{part}"] for part in ("fps", "robot", "rows")] == [10.0, 1.0, 0.0]
        light = score["outside_robot.rewards:brightness"]
        assert light == pytest.approx((0.25 * 220 + 0.75 * 40) / 255)
        assert score["total"] == pytest.approx(2 * score["speed"] + 4 * light)
