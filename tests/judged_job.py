"""A toy job whose reward is a student: trained to tell its episodes from noise, with pairs to replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny_job import EPISODES, SIZE, make_tiny_job, square_episode

from roboalign_ray.config import JobConfig, StudentConfig
from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.store import write_store
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.clips import prepare_clips
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.training import StudentTrainer

TINY = {
    "height": 32,
    "width": 32,
    "frames": 4,
    "patch": 16,
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "ffn": 48,
    "text_hidden": 16,
    "text_layers": 1,
    "text_heads": 2,
    "text_ffn": 32,
    "text_buckets": 64,
    "text_words": 4,
    "fusion_layers": 1,
    "fusion_queries": 2,
}
_STEPS = 40


def judge_section() -> dict:
    """Relabels after every second update, by measurement; the gate asks for no more than exact above noise."""
    return {
        "student": StudentConfig.small(**TINY).model_dump(),
        "distillation": {"pairs_per_step": 4, "held_out_fraction": 0.3, "calibration": "none"},
        "gate": {"trials": ["random"], "clips": 4},
        "relabel": {
            "teacher": "privileged",
            "every": 2,
            "least": 1,
            "audit_every": 1,
            "audit_samples": 6,
            "rollouts": 6,
            "steps": 4,
            "held_out_samples": 4,
            # An untrained world model is far from its teacher's liking: drift must not decide when to relabel.
            "lowest_rank": -1.0,
            "largest_gap": 10.0,
        },
    }


def make_judged_job(folder: Path, **changes) -> JobConfig:
    """As `make_tiny_job`; writes a student and pairs as well."""
    judge = {**judge_section(), "weights": str(folder / "student"), "replay": str(folder / "pairs")}
    sections = {
        "reward": {"judged": {"weight": 1.0}},
        "judge": judge,
        "alignment": {"updates": 4, "evaluate_every": 2},
        "cluster": {
            "rollout": {"workers": 1, "num_cpus": 0.5, "threads": 1, "deadline_s": 120},
            "teacher": {"num_cpus": 0, "threads": 1, "deadline_s": 120},
            "distiller": {"num_cpus": 0, "threads": 1, "deadline_s": 120},
        },
    }
    for name, value in changes.items():
        old = sections.get(name)
        sections[name] = {**old, **value} if isinstance(old, dict) else value
    config = make_tiny_job(folder, **sections)
    write_store(
        map(labelled_episode, range(EPISODES)), folder / "store", held_out_fraction=0.3, overwrite=True
    )
    write_pairs(toy_pairs(), folder / "pairs", held_out_fraction=0.3)
    trained_student(config).save(folder / "student")
    return config


def labelled_episode(number: int) -> Episode:
    """A square whose place a simulator would know: the hand is the thing that moves, and touches it throughout."""
    episode = square_episode(number)
    length = len(episode.actions)
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(episode.actions[:-1], axis=0)])
    position = np.concatenate([places, np.zeros((length, 1))], axis=1)
    labels = {
        "gripper_position": position,
        "object_position": position,
        "contact": np.ones(length, bool),
        "penetration": np.zeros(length),
    }
    return replace(episode, outcome=Outcome(success=True, privileged=labels))


def toy_pairs() -> list[JudgedPair]:
    """Real clips at full marks, noise at none."""
    pairs = []
    for number in range(EPISODES):
        episode = square_episode(number)
        real = episode.frames["front"][:5]
        noise = np.random.default_rng(number).integers(0, 256, real.shape, dtype=np.uint8)
        for kind, frames, share in (("real", real, 1.0), ("degraded/noise", noise, 0.0)):
            scores = (share * maxima()).astype(np.float32)
            name = f"{kind}/{number}"
            pairs.append(
                JudgedPair(name, episode.group_id, frames, 10.0, episode.instruction, scores, "toy", kind)
            )
    return pairs


def trained_student(config: JobConfig) -> Student:
    torch.manual_seed(0)
    student = Student(config.judge.student)
    settings = config.judge.distillation.model_copy(
        update={"steps": _STEPS, "learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.0}
    )
    trainer = StudentTrainer(student, settings)
    pairs = toy_pairs()
    clips = prepare_clips([pair.frames for pair in pairs], config.judge.student)
    scores = np.stack([pair.scores for pair in pairs])
    for _ in range(_STEPS):
        trainer.step(clips, [pair.instruction for pair in pairs], scores)
    return trainer.result()


assert TINY["height"] == SIZE
