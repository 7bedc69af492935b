"""The report of an alignment run: `align` names the command that makes it, and every part of the reward is in it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_job import make_tiny_job
from toy_world_model import write_toy

from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.evaluation.protocols import EvaluationWindow
from roboalign_ray.metrics.perceptual import load_lpips
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.evaluate.demo import _notes
from roboalign_ray.pipelines.evaluate.job import Bench
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.registry import open_decoder

BRIGHTNESS = """
def brightness(inputs):
    return [float(sample.mean()) / 255 for sample in inputs.generated]
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny job that a reward of the user's own scores, and fidelity."""
    (tmp_path / "house_rewards.py").write_text(BRIGHTNESS)
    monkeypatch.syspath_prepend(tmp_path)
    cluster = {"rollout": {"workers": 1, "num_cpus": 0.5, "threads": 1, "deadline_s": 120}}
    evaluation = {"episodes": 4, "horizon": 4, "windows": [2], "bootstrap_resamples": 50}
    alignment = {"updates": 1, "prompts_per_update": 2, "held_out_prompts": 1}
    job = make_tiny_job(tmp_path, alignment=alignment, cluster=cluster, evaluation=evaluation)
    tree = yaml.safe_load(dump_yaml(job))
    tree["reward"] = {"house_rewards:brightness": {"weight": 2.0}, "fidelity": {"weight": 1.0}}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
def test_a_finished_run_gets_its_report_by_the_command_that_align_prints(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = [str(profile), "--set", "alignment.learning_rate=2e-3", "--out", str(out)]
    assert run(["align", *words, "--quiet"]) == 0
    printed = capsys.readouterr().out
    [command] = re.findall(r"before and after in one HTML file: roboalign (.*)", printed)
    assert shlex.split(command) == ["demo", *words, "--resume"]
    weights = (out / "aligned/model.safetensors").read_bytes()

    assert run([*shlex.split(command), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows = summary["before_after"]
    assert list(rows)[:2] == ["Reward: fidelity", "Reward: house_rewards:brightness"]
    mine = rows["Reward: house_rewards:brightness"]
    assert 0 < mine["before"] < 1  # a share of white, without the weight of 2
    assert mine["low"] <= mine["change"] <= mine["high"]
    page = Path(summary["report"]).read_text()
    assert 'data-metric="Reward: house_rewards:brightness"' in page
    assert "aligned by GRPO" in page
    assert (out / "aligned/model.safetensors").read_bytes() == weights  # measured, not trained again


@pytest.mark.parametrize("views", [1, 2])
def test_a_report_says_what_of_several_views_it_shows(views: int, tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", views)
    frames = np.zeros((4, views, 32, 32, 3), np.uint8)
    prompt = Prompt("e@0", frames[0], frames[0], np.zeros((4, 2), np.float32))
    window = EvaluationWindow(prompt, frames, ("front", "wrist")[:views])
    decoder, config = open_decoder(tmp_path / "toy", kind="toy_world_model:ToyKind"), JobConfig()
    notes = _notes(config, Bench(config, decoder, [window], load_lpips("random-alex"), "cpu"))
    [said] = [note for note in notes if "views" in note] or [""]
    assert ("front, wrist" in said and "FVD and judges see the first one alone" in said) is (views == 2)
