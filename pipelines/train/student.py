"""Distillation as a Ray Train job: trains a student on judged pairs, calibrates, measures, tests and publishes it.

    stores of pairs ──► PairBatches ─► StudentTrainer ──► calibration ──► agreement table ──► reward gate ──► version
                        extra examples (Ray Train)        └─ held-out groups, two parts ─┘

Complete results in the run's folder are not made again; an interrupted run resumes. A student that fails the gate is
kept with its tables for inspection, but is not published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.splits import group_fraction
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.folder_lock import one_job, store_lock
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.train_job import SUMMARY as TRAINING
from roboalign_ray.pipelines.train.train_job import TrainJob, check_shares, run_train_job, train_worker

STUDENT, ASSESSED, VERSIONS = "student", "assessed", "versions"
SUMMARY = "distillation.json"
_CALIBRATION_SALT = "roboalign_ray/calibration/1"
_ASSESSMENT_DEADLINE_S = 7200.0


@one_job
def run_distill(
    config: JobConfig,
    pairs: Sequence[str | Path],
    out: Path,
    *,
    start: Path | None = None,
    registry: Path | None = None,
    text_blind: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a student and publish it.

    Args:
        config: the `judge` section and `cluster.trainer` are used.
        pairs: stores of judged pairs and distillation sets.
        out: run directory.
        start: folder of the student to start from; None starts with random weights.
        registry: folder for published versions; None uses `out/versions`.
        text_blind: train without instructions, as a baseline; it is measured, but never published.
        quiet: show no progress on the terminal.

    Returns:
        "version" (None if not published), "agreement", "calibration_error", "gate", and the last training metrics.

    Raises:
        UserError: a store cannot be read, a split is empty, or the student fails the gate.
        RoleFailure: training failed more often than its workers may be restarted.
    """
    from roboalign_ray.pipelines.cluster.runtime import start_ray

    out = out.absolute()
    paths = [str(Path(path).absolute()) for path in pairs]
    _check_material(config, LabelledPairs(paths), start)
    config = check_ready(Preflight("train", config, out))
    spec = {
        "config": config.model_dump(),
        "out": str(out),
        "pairs": paths,
        "start": str(start.absolute()) if start else None,
        "text_blind": text_blind,
    }
    with start_ray(config.cluster, worker_logs=False):
        steps = config.judge.distillation.steps
        run_train_job(_train, spec, out, STUDENT, role=config.cluster.trainer, steps=steps, quiet=quiet)
        summary = _assess_student(config, spec)
    version = None if text_blind else _publish(out, registry or out / VERSIONS, summary)
    summary = {"version": version, **summary}
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _check_material(config: JobConfig, pairs: LabelledPairs, start: Path | None) -> None:
    """Check the input before anything starts."""
    fraction = config.judge.distillation.held_out_fraction
    for split in ("train", "held_out"):
        if not len(pairs.split(split, fraction)):
            raise UserError(
                f"no judged pair in the {split} split",
                where=", ".join(map(str, pairs.paths)),
                remedy="give more episodes' pairs, or change judge.distillation.held_out_fraction",
            )
    check_shares(
        config.judge.distillation.pairs_per_step,
        "pairs",
        config.cluster.trainer.workers,
        where="judge.distillation.pairs_per_step",
    )
    if start is not None or config.judge.distillation.frozen:
        _student(config, str(start) if start else None).freeze(config.judge.distillation.frozen)


def _student(config: JobConfig, start: str | None) -> Any:
    """The student at the beginning of training."""
    from roboalign_ray.judge.student.model import Student

    return _load_start(config, start) if start else Student(config.judge.student)


def _load_start(config: JobConfig, folder: str) -> Any:
    from roboalign_ray.judge.student.model import Student

    student = Student.load(folder)
    wanted = config.judge.student
    if student.config != wanted and student.can_grow(wanted):
        student = student.grown(wanted)
    if student.config != wanted:
        raise UserError(
            "the student to start from has another shape",
            where=folder,
            remedy="use its judge.student settings",
        )
    student.calibration = None
    return student


def _train(spec: dict[str, Any]) -> None:
    """The function that every worker runs."""
    train_worker(
        lambda config: _student_job(config, spec), spec, STUDENT, seed=lambda config: config.judge.seed
    )


def _student_job(config: JobConfig, spec: dict[str, Any]) -> TrainJob:
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from roboalign_ray.judge.student.clips import prepare_clips
    from roboalign_ray.judge.student.on_the_fly_examples import FreshExamples, fresh_shares
    from roboalign_ray.judge.student.training import StudentTrainer
    from roboalign_ray.judge.validation.baselines import others_instructions
    from roboalign_ray.pipelines.train.pair_stream import PairBatches

    judge, context = config.judge, ray.train.get_context()

    def prepared(drawn: list[JudgedPair], number: int) -> dict[str, Any]:
        pairs = fresh.batch(drawn, number)
        instructions = [pair.instruction for pair in pairs]
        return {
            "clips": prepare_clips([pair.frames for pair in pairs], judge.student),
            "instructions": others_instructions(instructions) if spec["text_blind"] else instructions,
            "scores": np.stack([pair.scores for pair in pairs]),
        }

    settings, rank = judge.distillation, context.get_world_rank()
    stream = PairBatches(
        spec["pairs"],
        prepared,
        pairs_per_step=settings.pairs_per_step,
        held_out_fraction=settings.held_out_fraction,
        replay_ratio=settings.replay_ratio,
        seed=judge.seed,
        cache_gb=settings.cache_gb,
        rank=rank,
        world_size=context.get_world_size(),
    )
    shares = fresh_shares(settings)
    if spec["text_blind"]:
        # A text-blind judge does not see the instruction, so examples with wrong instructions would only mislead it.
        shares = replace(shares, asked_else=0.0)
    fresh = FreshExamples(shares, stream.pairs, judge.seed + rank)
    student = _student(config, spec["start"])
    student.learn_words(fresh.words())  # before the trainer copies it
    student.freeze(settings.frozen)
    trainer = StudentTrainer(prepare_model(student), judge.distillation, device=get_device())
    return TrainJob(
        trainer=trainer,
        stream=stream,
        step=lambda batch: trainer.step(**batch),
        save=lambda folder: trainer.result().save(folder),
        steps=judge.distillation.steps,
        log_every=judge.distillation.log_every,
        checkpoint_every=judge.distillation.checkpoint_every,
    )


def _assess_student(config: JobConfig, spec: dict[str, Any]) -> dict[str, Any]:
    """Calibrate and measure with the trainer's resources."""
    import ray

    from roboalign_ray.pipelines.cluster.runtime import thread_environment, wait

    role = config.cluster.trainer
    task: Any = ray.remote(_assess).options(
        num_cpus=role.num_cpus,
        num_gpus=role.num_gpus,
        resources=role.resources or None,
        accelerator_type=role.accelerator_type,
        runtime_env={"env_vars": thread_environment(role)},
    )
    [summary] = wait([task.remote(spec)], _ASSESSMENT_DEADLINE_S, "assessment")
    return summary


def _assess(spec: dict[str, Any]) -> dict[str, Any]:
    """Calibrate on one part of the held-out groups, measure and run the gate on the other; writes `out/assessed`."""
    import torch

    from roboalign_ray.judge.student.model import Student
    from roboalign_ray.judge.student.training_range import fit_training_range
    from roboalign_ray.judge.validation.assessment import assess_student

    config, out = JobConfig.model_validate(spec["config"]), Path(spec["out"])
    pairs = LabelledPairs(spec["pairs"])
    student = Student.load(out / STUDENT).to("cuda" if torch.cuda.is_available() else "cpu")
    fitted, measured = _held_out_parts(pairs, config)
    result = assess_student(student, config, pairs, fitted, measured, text_blind=spec["text_blind"])
    student.cpu().save(out / ASSESSED)
    if training_range := fit_training_range(pairs, config.judge.distillation.held_out_fraction):
        training_range.save(out / ASSESSED)
    (out / "agreement.md").write_text(result.agreement_table, encoding="utf-8")
    if result.gate is not None:
        (out / "gate.md").write_text(result.gate.table(), encoding="utf-8")
    training = read_object(out / STUDENT / TRAINING, "training summary")
    return {**result.as_json(), "training": training}


def _held_out_parts(pairs: LabelledPairs, config: JobConfig) -> tuple[np.ndarray, np.ndarray]:
    """Held-out positions for calibration and for measurement, with disjoint groups.

    Raises:
        UserError: one part is empty.
    """
    settings = config.judge.distillation
    held_out = pairs.split("held_out", settings.held_out_fraction)
    shares = np.array([group_fraction(pairs.group_ids[n], _CALIBRATION_SALT) for n in held_out])
    first = shares < settings.calibration_share
    if not first.any() or first.all():
        raise UserError(
            f"{len(held_out)} held-out pairs do not divide into calibration and measurement by group",
            where="judge.distillation.calibration_share",
            remedy="give pairs of more episodes, or hold out a larger share",
        )
    return held_out[first], held_out[~first]


def _publish(out: Path, registry: Path, summary: dict[str, Any]) -> int:
    """Publish a new version if the gate is passed; the same weights are published only once.

    Raises:
        UserError: the student fails the gate.
    """
    from roboalign_ray.judge.student.model import WEIGHTS, Student
    from roboalign_ray.judge.student.registry import StudentRegistry
    from roboalign_ray.judge.validation.gate import GateResult

    GateResult.from_json(summary["gate"]).assert_open()
    digest = hashlib.sha256((out / ASSESSED / WEIGHTS).read_bytes()).hexdigest()
    with store_lock(registry.absolute()):  # jobs of other folders may publish to the same registry
        return StudentRegistry(registry).publish(Student.load(out / ASSESSED), summary, key=digest)
