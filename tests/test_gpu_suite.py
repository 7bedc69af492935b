"""The GPU benchmarks, rehearsed on a CPU at a tiny size, where the packages that GPU images lack cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_denoiser import tiny_sizes

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.store import write_store
from roboalign_ray.world_model.registry import open_world_model

REPOSITORY = Path(__file__).resolve().parents[1]
# `sys.modules[name] = None` makes `import name` fail as if the package were not installed.
WITHOUT = """
import runpy, sys
for name in ("ray", "deepspeed", "vllm", "av"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def lines_of(*command, codes=(0,)):
    """Printed JSON by section."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, command)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode in codes, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, {line.pop("section"): line for line in found}


def suite(*sections):
    _, found = lines_of(
        "benchmarks/gpu_suite.py", "--device", "cpu", "--size", "tiny", "--sections", *sections
    )
    assert list(found) == list(sections)
    assert not [name for name, line in found.items() if "error" in line]
    return found


def test_quick_sections_run_without_ray_deepspeed_vllm_and_pyav():
    found = suite("device", "same_tokens", "first_kl", "token_rollouts", "kept", "learner")
    assert found["same_tokens"]["equal_share"] == 1.0  # a CPU beside itself
    assert found["first_kl"]["right"] is True
    assert set(found["first_kl"]) >= {"float32", "bfloat16"}
    assert (
        found["learner"]["tokens_per_update"] == 4 * 16 * 2 * 4
    )  # groups, samples, frames, tokens of a frame


@pytest.mark.slow
def test_all_other_sections_run_too():
    found = suite(
        "same_frames", "diffusion_rollouts", "diffusion_training", "student", "scorer", "environment"
    )
    assert found["same_frames"]["largest_difference"] == 0


def two_view_episode(number):
    generator = np.random.default_rng(number)
    frames = {
        view: generator.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8) for view in ("front", "wrist")
    }
    return Episode(
        episode_id=f"toy/{number}",
        group_id=f"toy/{number}",
        frames=frames,
        actions=generator.normal(size=(16, 2)).astype(np.float32),
        instruction="move",
        fps=5.0,
        embodiment="toy",
        action_names=("x", "y"),
        action_kinds=("delta", "delta"),
    )


@pytest.mark.slow
def test_training_writes_weights_that_beat_others_or_none(tmp_path):
    write_store((two_view_episode(n) for n in range(8)), tmp_path / "store", held_out_fraction=0.3)
    sizes = tiny_sizes(height=32, width=32).model_dump(mode="json")
    values = [f"diffusion.denoiser.{key}={json.dumps(value)}" for key, value in sizes.items()]
    values += ["diffusion.training.perceptual_weight=0", "diffusion.training.clips_per_window=2"]
    values += ["episodes.held_out_fraction=0.3"]
    command = ["benchmarks/gpu_train_diffusion.py", tmp_path / "store", "--device", "cpu", "--processes", "1"]
    command += ["--rows", "2", "--windows", "2", "--horizon", "4"]
    command += [word for value in values for word in ("--set", value)]

    code, found = lines_of(*command, "--out", tmp_path / "first", "--steps", "20")
    assert code == 0
    assert found["trained"]["step"] == 20
    model = open_world_model(tmp_path / "first" / "world_model")
    assert (model.card.views, model.card.action_dims) == (2, 2)

    rival = ["--out", tmp_path / "second", "--against", tmp_path / "first" / "world_model"]
    code, found = lines_of(*command, *rival, "--steps", "20", codes=(0, 3))
    assert (code == 0) == (tmp_path / "second" / "world_model").exists()
    better = found["change"]["lpips"]["high"] < 0 < found["change"]["psnr"]["high"]
    assert better == (code == 0)

    code, found = lines_of(*command, "--out", tmp_path / "third", "--seconds", "0", codes=(3,))
    assert "fewer than" in found["result"]["why"]
    assert not (tmp_path / "third" / "world_model").exists()
