"""Scoring of many clips: rate of a job against a plain loop in one process, and the memory of the driver.

    python benchmarks/scoring.py --clips 200 2000

The clips are those of the package's judged pairs, each as a file of its own, again and again. Loop and job run one
after the other on the same files with the same student. The job's time includes the start of its actors, and not that
of Ray. The driver's memory is the peak of its process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = (
    "cluster.scorer.threads=1",
    "scoring.decode_cpus=0.25",
    "scoring.judge_max=2",
    "scoring.decode_max=1",
)


def write_clips(folder: Path, count: int) -> None:
    """Clips of the package's judged pairs, with their instructions."""
    from roboalign_ray.config.loading import load_job
    from roboalign_ray.episodes.video import encode_video
    from roboalign_ray.judge.data.label_store import LabelledPairs
    from roboalign_ray.pipelines.cluster.weight_folders import replay_folder

    pairs = LabelledPairs([replay_folder(load_job("demo"))])
    some = [pairs.read(number) for number in range(min(50, len(pairs)))]
    made = [(encode_video(pair.frames, pair.fps), pair.instruction) for pair in some]
    folder.mkdir()
    for number in range(count):
        video, instruction = made[number % len(made)]
        (folder / f"{number:06d}.mp4").write_bytes(video)
        (folder / f"{number:06d}.json").write_text(json.dumps({"instruction": instruction}))


def plain_loop(folder: Path) -> float:
    """Clips per second of a loop that reads and judges one clip after the other."""
    from roboalign_ray.config.loading import load_job
    from roboalign_ray.judge.protocol import read_request
    from roboalign_ray.judge.student.judge import StudentJudge
    from roboalign_ray.judge.student.model import Student
    from roboalign_ray.judge.student.training_range import TrainingRange
    from roboalign_ray.pipelines.cluster.weight_folders import student_folder
    from roboalign_ray.pipelines.label.videos import sidecar_of

    place = student_folder(load_job("demo"))
    judge = StudentJudge(Student.load(place), TrainingRange.load(place))
    paths = sorted(folder.glob("*.mp4"))
    began = time.perf_counter()
    for path in paths:
        judge.judge([read_request(path, sidecar_of(path)["instruction"])])
    return len(paths) / (time.perf_counter() - began)


def run_job(folder: Path, out: Path) -> None:
    """Run one job in this process and print its figures as JSON."""
    from roboalign_ray.config.loading import resolve_job
    from roboalign_ray.pipelines.label.clips import ClipInput
    from roboalign_ray.pipelines.label.score_job import run_scoring

    report = run_scoring(resolve_job("demo", SETTINGS), ClipInput(str(folder)), out, quiet=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"rate": report.scored / report.seconds, "cost": report.cost(), "memory_mb": memory // 1024}
        )
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[200, 2000], help="sizes of the input")
    parser.add_argument("--job", nargs=2, metavar=("FOLDER", "OUT"), type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        run_job(*given.job)
        return
    for count in given.clips:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "clips"
            write_clips(folder, count)
            loop = plain_loop(folder)
            command = [sys.executable, __file__, "--job", str(folder), str(Path(place) / "out")]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        print(
            f"{count} clips: loop {loop:.1f} a second, job {found['rate']:.1f} ({found['rate'] / loop:.2f} times)"
        )
        print(f"  {found['cost']}; the driver's peak memory {found['memory_mb']} MB", flush=True)


if __name__ == "__main__":
    main()
