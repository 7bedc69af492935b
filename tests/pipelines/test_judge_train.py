"""Training a teacher as a job: it learns, resumes to the same weights, and writes what transformers loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from pipelines.judge_engine import MERGED
from pipelines.judge_train import TEACHER, PairBatches, run_judge_train
from roboalign_ray.config import JobConfig, SmallTeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.pairs import JudgedPair, write_pairs

STEPS = 6


def job(**training: Any) -> JobConfig:
    settings = {
        "start": "small",
        "method": "full",
        "steps": STEPS,
        "pairs_per_step": 4,
        "micro_batch": 3,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
        "precision": "float32",
        "zero_stage": 0,
        "held_out_fraction": 0.2,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    brief = {"opening": "", "rubric": "none", "closing": "", "describe_answer": False}
    teacher = {
        "small": SmallTeacherConfig.tiny().model_dump(),
        "frames": 4,
        "pixels": 1024,
        "reasoning": False,
        "precision": "float32",
        "prompt": brief,
        "training": settings | training,
    }
    cluster = {"object_store_gb": 0.2, "trainer": {"num_cpus": 0.5, "threads": 1}}
    return JobConfig.model_validate({"teacher": teacher, "cluster": cluster})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen videos, bright ones good and dark ones bad."""
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    best = np.array([3, 2, 1, 1, 1, 2], np.float32)
    made = (
        JudgedPair(
            f"p{n}",
            f"g{n}",
            np.full((4, 32, 32, 3), 200 * (n % 2) + n, np.uint8),
            5.0,
            "open the drawer",
            best * (n % 2),
            "test",
            "real",
        )
        for n in range(16)
    )
    write_pairs(made, folder)
    return folder


def taken(batches: PairBatches, count: int) -> list[list[str]]:
    stream = iter(batches)
    return [[pair.pair_id for pair in next(stream)["pairs"]] for _ in range(count)]


def test_batches_follow_from_the_step_and_workers_share_them(pairs: Path) -> None:
    teacher = job().teacher
    alone = PairBatches([str(pairs)], teacher, 0, 1)
    whole = taken(alone, 6)
    assert all(len(batch) == 4 for batch in whole)
    shares = [taken(PairBatches([str(pairs)], teacher, rank, 2), 6) for rank in range(2)]
    for both, first, second in zip(whole, *shares, strict=True):
        assert sorted(both) == sorted(first + second)
    later = PairBatches([str(pairs)], teacher, 0, 1)
    later.load_state_dict({**alone.state_dict(), "step": 4})
    assert taken(later, 2) == whole[4:]
    with pytest.raises(UserError, match="the saved position has seed 1"):
        later.load_state_dict({**alone.state_dict(), "seed": 1})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_teacher_is_trained_resumed_and_loaded(cluster: None, pairs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from roboalign_ray.judge.teacher.protocol import JudgeRequest
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    whole = run_judge_train(job(), [pairs], tmp_path / "whole", quiet=True)
    lines = (tmp_path / "whole" / "logs" / TEACHER / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    # As if the process had died before its last steps: only what a checkpoint kept is left.
    (tmp_path / "whole" / TEACHER).rename(tmp_path / "first")
    run_judge_train(job(), [pairs], tmp_path / "whole", quiet=True)
    first = load_file(tmp_path / "first" / MERGED / "model.safetensors")
    again = load_file(tmp_path / "whole" / TEACHER / MERGED / "model.safetensors")
    assert all((first[name] == again[name]).all() for name in first)
    config = job().teacher.model_copy(update={"model": whole["model"], "samples": 1})
    teacher = TransformersTeacher(config)
    assert len(teacher.judge([JudgeRequest(np.zeros((4, 32, 32, 3), np.uint8), 5.0, "open the drawer")])) == 1


@pytest.mark.slow
def test_the_merged_model_is_the_adapters(cluster: None, pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from roboalign_ray.judge.teacher.small import make_small_teacher
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    base = tmp_path / "base"
    config = job(start="model", method="lora", lora_rank=4, lora_alpha=8, learning_rate=1e-2)
    make_small_teacher(config.teacher, ["open the drawer"], base)
    teacher = config.teacher.model_copy(update={"model": str(base)})
    config = config.model_copy(update={"teacher": teacher})
    summary = run_judge_train(config, [pairs], tmp_path / "run", quiet=True)

    def weights(model: str, adapter: str | None = None) -> dict[str, torch.Tensor]:
        loaded = TransformersTeacher(teacher.model_copy(update={"model": model, "adapter": adapter}))
        return loaded.model.state_dict()

    plain, adapted, merged = (
        weights(str(base)),
        weights(str(base), summary["adapter"]),
        weights(summary["model"]),
    )
    changed = {name for name in plain if not torch.equal(plain[name], adapted[name])}
    assert changed
    assert all("language_model.layers" in name for name in changed)
    for name, values in merged.items():
        torch.testing.assert_close(values, adapted[name], rtol=2**-7, atol=1e-5)  # the export is bfloat16
    other = tmp_path / "other"
    make_small_teacher(teacher.model_copy(update={"seed": 3}), ["open the drawer"], other)
    with pytest.raises(UserError, match="this adapter belongs to"):
        weights(str(other), summary["adapter"])
