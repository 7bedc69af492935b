"""How many videos a second the student judges, beside the teacher, in one run.

    python benchmarks/judges.py

Clips of noise, 13 frames of 64x64, as those of the bench; weights are random, except that the teacher's answers are
held to the grammar of scores: time does not depend on what is judged. The published student is about ten times cheaper
than its teacher and judges about 50 videos a second (RoboAlign-R1, arXiv 2605.03821); a teacher of eight billion
parameters is not at hand on a CPU, so a small one stands beside, which compares with the demo's student alone.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from roboalign_ray.config import StudentConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.judge.protocol import JudgeRequest
from roboalign_ray.judge.student.model import Student, parameter_count
from roboalign_ray.judge.teacher.small import make_small_teacher
from roboalign_ray.judge.teacher.transformers_backend import TransformersTeacher

FRAMES, SIZE, INSTRUCTION = 13, 64, "open the drawer"


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Videos a second and parameters, by judge; all take turns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (arguments.videos, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    judges = {**students(device), "teacher, 5 answers": teacher()}
    times: dict[str, list[float]] = {name: [] for name in judges}
    for _ in range(arguments.repeats + 1):  # the first round warms up
        for name, (judge, _, share) in judges.items():
            part = clips[: max(1, int(len(clips) * share))]
            began = time.perf_counter()
            judge(part)
            times[name].append((time.perf_counter() - began) / len(part))
    return {
        name: {"videos_per_second": 1 / median(times[name][1:]), "parameters": float(parameters)}
        for name, (_, parameters, _) in judges.items()
    }


def students(device: str) -> dict[str, tuple[Callable[[np.ndarray], object], int, float]]:
    """The demo's, and the default of 98 million parameters."""
    found = {}
    for name, config in (
        ("student, demo", load_job("demo").judge.student),
        ("student, 98M", StudentConfig()),
    ):
        student = Student(config).to(device).eval()

        def judge(clips: np.ndarray, student: Student = student) -> object:
            return student.score(clips, [INSTRUCTION] * len(clips), batch=8 if device == "cpu" else 64)

        found[name] = (judge, parameter_count(student), 1.0 if config.hidden < 500 else 0.25)
    return found


def teacher() -> tuple[Callable[[np.ndarray], object], int, float]:
    """A small Qwen3-VL, five answers to each video at the published temperature."""
    config = load_job("teacher").teacher
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "teacher"
        made.mkdir()
        make_small_teacher(config, [INSTRUCTION], made)
        judge = TransformersTeacher(
            config.model_copy(update={"model": str(made), "samples": 5, "temperature": 0.6})
        )

    def ask(clips: np.ndarray) -> object:
        return judge.judge([JudgeRequest(clip, 5.0, INSTRUCTION) for clip in clips])

    return ask, parameter_count(judge.model), 0.25


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    slowest = figures["teacher, 5 answers"]["videos_per_second"]
    print("| judge | parameters | videos/s | against the teacher |\n|---|---|---|---|")
    for name, row in figures.items():
        rate = row["videos_per_second"]
        print(f"| {name} | {row['parameters'] / 1e6:.1f}M | {rate:.2f} | {rate / slowest:.1f}× |")


if __name__ == "__main__":
    main()
