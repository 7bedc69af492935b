"""Training a teacher as a job: it learns, resumes to the same weights, and writes what transformers loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from roboalign_ray.config import JobConfig, RoleConfig, SmallTeacherConfig, TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.pipelines.train.pair_stream import PairBatches
from roboalign_ray.pipelines.train.teacher import TEACHER, VISION, run_judge_train
from roboalign_ray.pipelines.train.teacher_engine import MERGED

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


def batches(pairs: Path, rank: int = 0, world_size: int = 1, **changes) -> PairBatches:
    settings = {"pairs_per_step": 4, "held_out_fraction": 0.1, "replay_ratio": None, "seed": 0, **changes}
    return PairBatches(
        [str(pairs)], lambda drawn, step: {"pairs": drawn}, rank=rank, world_size=world_size, **settings
    )


def taken(stream: PairBatches, count: int) -> list[list[str]]:
    made = iter(stream)
    return [[pair.pair_id for pair in next(made)["pairs"]] for _ in range(count)]


def test_batches_follow_from_the_step_and_workers_share_them(pairs: Path) -> None:
    alone = batches(pairs)
    whole = taken(alone, 6)
    assert all(len(batch) == 4 for batch in whole)
    shares = [taken(batches(pairs, rank, 2), 6) for rank in range(2)]
    for both, first, second in zip(whole, *shares, strict=True):
        assert sorted(both) == sorted(first + second)
    later = batches(pairs)
    later.load_state_dict({**alone.state_dict(), "step": 4})
    assert taken(later, 2) == whole[4:]
    with pytest.raises(UserError, match="the saved position has seed 1"):
        later.load_state_dict({**alone.state_dict(), "seed": 1})


def test_steps_that_are_not_taken_need_not_divide_among_workers(pairs: Path, tmp_path: Path) -> None:
    three = RoleConfig(num_cpus=0.5, workers=3)

    def refused(**training: Any) -> str:
        config = job(pairs_per_step=6, vision_pairs_per_step=32, **training)
        teacher = config.teacher.model_copy(update={"model": str(tmp_path / "absent")})
        cluster = config.cluster.model_copy(update={"trainer": three})
        with pytest.raises(UserError) as told:
            run_judge_train(
                config.model_copy(update={"teacher": teacher, "cluster": cluster}), [pairs], tmp_path / "out"
            )
        return told.value.line()

    assert "teacher.training.vision_pairs_per_step" in refused(vision_steps=2)
    assert "absent: no such folder" in refused(start="model")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_teacher_is_trained_resumed_and_loaded(cluster: None, pairs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from roboalign_ray.judge.protocol import JudgeRequest
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    plain = {"vision_steps": 3, "vision_pairs_per_step": 8, "regression_weight": 1.0}
    sees_first = job(**plain, shift=0.2, light=0.2)
    whole = run_judge_train(sees_first, [pairs], tmp_path / "whole", quiet=True)
    seeing = load_file(tmp_path / "whole" / VISION / "model.safetensors")
    start = load_file(tmp_path / "whole" / "start" / "model.safetensors")
    assert {name.split(".")[1] for name in start if not torch.equal(start[name], seeing[name])} == {"visual"}
    lines = (tmp_path / "whole" / "logs" / TEACHER / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert all(json.loads(line)["read_mae"] > 0 for line in lines)
    assert (
        load_file(Path(whole["model"]) / "model.safetensors").keys() == start.keys()
    )  # the head is not kept
    # As if the process had died before its last steps: only what a checkpoint kept is left.
    (tmp_path / "whole" / TEACHER).rename(tmp_path / "first")
    run_judge_train(sees_first, [pairs], tmp_path / "whole", quiet=True)
    first = load_file(tmp_path / "first" / MERGED / "model.safetensors")
    again = load_file(tmp_path / "whole" / TEACHER / MERGED / "model.safetensors")
    assert all((first[name] == again[name]).all() for name in first)
    run_judge_train(job(**plain), [pairs], tmp_path / "plain", quiet=True)
    unmoved = load_file(tmp_path / "plain" / VISION / "model.safetensors")
    assert all(
        torch.equal(seeing[name], unmoved[name]) for name in seeing
    )  # the encoder alone sees videos as they are
    unmoved = load_file(tmp_path / "plain" / TEACHER / MERGED / "model.safetensors")
    assert not all(torch.equal(first[name], unmoved[name]) for name in first)
    config = job().teacher.model_copy(update={"model": whole["model"], "samples": 1})
    teacher = TransformersTeacher(config)
    assert len(teacher.judge([JudgeRequest(np.zeros((4, 32, 32, 3), np.uint8), 5.0, "open the drawer")])) == 1


@dataclass(frozen=True)
class Adapted:
    """A model, and what a LoRA run on it wrote."""

    base: Path
    teacher: TeacherConfig
    summary: dict[str, Any]

    def choices(self) -> dict[str, TeacherConfig]:
        """The config of the model alone, with its adapter, and of both in one."""
        adapter, merged = self.summary["adapter"], self.summary["model"]
        return {
            "base": self.teacher,
            "adapter": self.teacher.model_copy(update={"adapter": adapter}),
            "merged": self.teacher.model_copy(update={"model": merged}),
        }


@pytest.fixture(scope="module")
def adapted(cluster: None, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    pytest.importorskip("peft")
    from roboalign_ray.judge.teacher.small import make_small_teacher

    folder = tmp_path_factory.mktemp("lora")
    config = job(start="model", method="lora", lora_rank=4, lora_alpha=8, learning_rate=1e-2)
    make_small_teacher(config.teacher, ["open the drawer"], folder / "base")
    teacher = config.teacher.model_copy(update={"model": str(folder / "base")})
    config = config.model_copy(update={"teacher": teacher})
    return Adapted(folder / "base", teacher, run_judge_train(config, [pairs], folder / "run", quiet=True))


@pytest.mark.slow
def test_the_merged_model_is_the_adapters(adapted: Adapted, tmp_path: Path) -> None:
    from roboalign_ray.judge.teacher.small import make_small_teacher
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

    weights = {
        name: TransformersTeacher(config).model.state_dict() for name, config in adapted.choices().items()
    }
    changed = {
        name for name, values in weights["base"].items() if not torch.equal(values, weights["adapter"][name])
    }
    assert changed
    assert all("language_model.layers" in name for name in changed)
    for name, values in weights["merged"].items():  # the export is bfloat16
        torch.testing.assert_close(values, weights["adapter"][name], rtol=2**-7, atol=1e-5)
    other = tmp_path / "other"
    make_small_teacher(adapted.teacher.model_copy(update={"seed": 3}), ["open the drawer"], other)
    with pytest.raises(UserError, match="this adapter belongs to"):
        TransformersTeacher(adapted.choices()["adapter"].model_copy(update={"model": str(other)}))


@pytest.mark.slow
def test_vllm_loads_the_adapter_and_the_merged_model(adapted: Adapted) -> None:
    """At temperature 0 it answers word by word as transformers does with the same files."""
    pytest.importorskip("vllm")
    from roboalign_ray.judge.protocol import Judgement, JudgeRequest
    from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher
    from roboalign_ray.pipelines.label.teacher_pool import TeacherPool

    clips = [np.full((4, 32, 32, 3), shade, np.uint8) for shade in (10, 120, 220)]
    requests = [JudgeRequest(clip, 5.0, "open the drawer") for clip in clips]
    settings = {"temperature": 0.0, "max_new_tokens": 300, "rationale_characters": 20}
    engine = {"eager": True, "max_model_len": 1024}
    told = {}
    for name, config in adapted.choices().items():
        asked = TeacherConfig.model_validate({**config.model_dump(), **settings, "engine": engine})
        by_transformers = TransformersTeacher(asked).judge(requests)
        pool = TeacherPool(
            asked.model_copy(update={"backend": "vllm"}), RoleConfig(num_cpus=1, deadline_s=600)
        )
        by_vllm = pool.judge(requests)
        pool.close()
        for ours, theirs in zip(by_vllm, by_transformers, strict=True):
            assert isinstance(ours, Judgement)
            assert isinstance(theirs, Judgement)
            assert ours.texts == theirs.texts
        told[name] = [ours.texts for ours in by_vllm]
    assert told["adapter"] != told["base"]
