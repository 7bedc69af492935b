"""The scripts of `examples/` run as they stand, from any folder; only sizes are made small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from roboalign_ray.episodes.video import decode_video

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = (
    "rollout.horizon=3",
    "alignment.prompts_per_update=2",
    "alignment.minibatch_prompts=2",
    "alignment.group_size=2",
    "alignment.evaluate_every=1",
    "alignment.held_out_prompts=2",
    "alignment.held_out_samples=2",
)
PIXELS = ("reward.judged.weight=0", "reward.fidelity.lpips_network=random-alex")


def run(name: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "examples" / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in (REPOSITORY / "examples").glob("*.py")} == tested


def test_roll_out(tmp_path: Path) -> None:
    assert "20 frames: runs/roll_out.mp4" in run("roll_out.py", tmp_path)
    assert decode_video(tmp_path / "runs/roll_out.mp4").shape == (20, 256, 512, 3)


@pytest.mark.slow
def test_own_reward(tmp_path: Path) -> None:
    printed = run("own_reward.py", tmp_path, "alignment.updates=1", *SMALL, *PIXELS)
    assert "aligned model: " in printed
    rows = (tmp_path / "runs/own_reward/rollouts.jsonl").read_text()
    assert rows.count("own_reward:Steadiness/still") >= 4


def test_plan(tmp_path: Path) -> None:
    printed = run("plan.py", tmp_path, "candidates=4", "iterations=1")
    assert re.search(
        r"plan 2: cost 0\.\d{4} from 4 candidates in [\d.]+ s\n7 frames: runs/plan\.mp4", printed
    )
    assert decode_video(tmp_path / "runs/plan.mp4").shape == (7, 256, 256, 3)


@pytest.mark.slow
def test_align(tmp_path: Path) -> None:
    printed = run("align.py", tmp_path, "alignment.updates=1", *SMALL, *PIXELS)
    assert re.search(r"after   1 updates: held-out reward -?\d\.\d{3}", printed)
    assert (tmp_path / "runs/example/aligned/model.safetensors").is_file()


@pytest.mark.slow
def test_resume(tmp_path: Path) -> None:
    printed = run("resume.py", tmp_path, *SMALL, *PIXELS)
    assert "2 groups before the stop, 4 in all" in printed
    assert "step-00000002" in printed


@pytest.mark.slow
def test_own_episodes(tmp_path: Path) -> None:
    steps = ("tokenizer_training.steps=3", "tokenizer_training.warmup_steps=1", "pretraining.steps=3")
    more = (
        "pretraining.warmup_steps=1",
        "tokenizer_training.perceptual_weight=0",
        "cluster.trainer.threads=1",
    )
    printed = run("own_episodes.py", tmp_path, *steps, *more)
    assert re.search(r"tokenizer: loss .* after 3 steps\nworld_model: loss .* after 3 steps", printed)
