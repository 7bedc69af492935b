"""What a student judge overlooks: every trial of the reward gate with intervals, and some kinds that it was not taught.

    python benchmarks/blind_spots.py
    python benchmarks/blind_spots.py --student runs/student --pairs runs/bench --clips 200
    python benchmarks/blind_spots.py --pairs runs/parts --without-gate-of ASSETS/pairs --agreement

Held-out real clips that show their task being done; where a trial spoils a third, every clip is spoiled in each third.
Gaps between the clip as it was and the spoiled one, in per cent of the range, least third first to fail; for other
words the mean absolute change in points. Intervals (95 %) resample groups of episodes. Whatever is chosen by such
figures (when to stop, what to average) must be chosen on other groups than the gate's: `--without-gate-of`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.config.judge import LOCAL_TRIALS, TRIALS
from roboalign_ray.config.loading import load_job
from roboalign_ray.judge.bench.parts import THIRDS, third_of
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.validation.agreement import agreement, agreement_table
from roboalign_ray.judge.validation.assessment import clip_batches, gate_clips, gate_positions
from roboalign_ray.judge.validation.gate import TOTAL_RANGE
from roboalign_ray.judge.validation.trials import GateClip, Question, is_paraphrase, trial_questions
from roboalign_ray.pipelines.cluster.weight_folders import replay_folder, student_folder

RESAMPLES = 1000


def strobe(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Every other frame is black."""
    return frames * (np.arange(len(frames)) % 2 == 0)[:, None, None, None].astype(np.uint8)


def interlaced(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Every other row is of another task's clip."""
    mixed = frames.copy()
    mixed[:, 1::2] = other[:, 1::2]
    return mixed


def wiped(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Another task's clip comes in from the left, column by column."""
    edge = np.linspace(0, frames.shape[2], len(frames)).astype(int)
    inside = np.arange(frames.shape[2]) < edge[:, None]
    return np.where(inside[:, None, :, None], other, frames)


def turned(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A quarter of a turn of the picture."""
    return np.ascontiguousarray(np.rot90(frames, axes=(1, 2)))


def torn(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The lower half comes three frames late."""
    late, half = frames[np.maximum(np.arange(len(frames)) - 3, 0)], frames.shape[1] // 2
    return np.concatenate([frames[:, :half], late[:, half:]], axis=1)


def picture_in_picture(frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Another task's clip, half as large, in the middle."""
    mixed, (height, width) = frames.copy(), frames.shape[1:3]
    mixed[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = other[:, ::2, ::2]
    return mixed


UNTAUGHT: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    rule.__name__: rule for rule in (strobe, interlaced, wiped, turned, torn, picture_in_picture)
}


def questions(trial: str, clips: Sequence[GateClip]) -> list[tuple[int, Question]]:
    """Positions of clips, and what is asked of them; each in every third where thirds are spoiled."""
    asked = []
    for turn in range(THIRDS if trial in LOCAL_TRIALS else 1):
        turned_round = [*clips[turn:], *clips[:turn]]
        made = trial_questions(trial, turned_round, seed=turn)
        asked += [
            ((n + turn) % len(clips), question) for n, question in enumerate(made) if question is not None
        ]
    return asked


def untaught(name: str, clips: Sequence[GateClip]) -> list[tuple[int, Question]]:
    """As `questions`, of a kind that is not taught, for each third."""
    asked = []
    for n, clip in enumerate(clips):
        other = next(
            c for c in [*clips[n:], *clips] if c.task != clip.task and len(c.frames) == len(clip.frames)
        )
        whole = UNTAUGHT[name](clip.frames, other.frames)
        for third in range(THIRDS):
            part, shown = third_of(len(clip.frames), third), clip.frames.copy()
            shown[part.first : part.end] = whole[part.first : part.end]
            asked.append((n, Question(shown, clip.instruction, clip.frames, third)))
    return asked


def interval(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float, float]:
    """Mean, and its 95 % interval over groups."""
    names, members = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(members, values), np.bincount(members)
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def row(
    name: str, asked: Sequence[tuple[int, Question]], totals: np.ndarray, exact: np.ndarray, clips
) -> str:
    """A line of the table."""
    at = np.array([n for n, _ in asked])
    lost, groups = exact[at] - totals, np.array([clips[n].group_id for n in at])
    if is_paraphrase(name):
        mean, low, high = interval(np.abs(lost), groups)
        return f"| {name} | {len(at)} | {mean:.2f} [{low:.2f}, {high:.2f}] points | | | |"
    thirds = np.array([-1 if q.third is None else q.third for _, q in asked])
    cells = []
    for third in np.unique(thirds):
        inside = thirds == third
        mean, low, high = interval(100 * lost[inside] / TOTAL_RANGE, groups[inside])
        cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
    cells += [""] * (THIRDS - len(cells))
    return f"| {name} | {len(at)} | {' | '.join(cells)} | {(lost > 0).mean():.0%} |"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", type=Path, help="folder of a student; default: the shipped one")
    parser.add_argument(
        "--pairs", type=Path, action="append", help="stores of pairs; default: the shipped one"
    )
    parser.add_argument("--clips", type=int, default=200, help="at most so many clips")
    parser.add_argument("--trials", nargs="+", default=[*TRIALS, *UNTAUGHT], help="default: all")
    parser.add_argument(
        "--without-gate-of", type=Path, help="leave out the groups that the gate tries in this store"
    )
    parser.add_argument("--agreement", action="store_true", help="also with held-out pairs' labels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_job("demo")
    student = Student.load(args.student or student_folder(config))
    pairs = LabelledPairs(args.pairs or [replay_folder(config)])
    fraction = config.judge.distillation.held_out_fraction
    held_out = pairs.split("held_out", fraction)
    if args.without_gate_of:
        tried = LabelledPairs([args.without_gate_of])
        shown = gate_positions(tried, tried.split("held_out", fraction), config.judge.gate)
        groups = {tried.group_ids[n] for n, _ in shown}
        held_out = np.array([n for n in held_out if pairs.group_ids[n] not in groups])
    clips = gate_clips(pairs, held_out, config.judge.gate.model_copy(update={"clips": args.clips}))
    if args.agreement:
        shares, std = student.raw_shares(clip_batches(pairs, held_out, student.config))
        calibrated = student.calibrated(shares, std).scores
        their_groups = [pairs.group_ids[n] for n in held_out]
        found = agreement("student", calibrated, pairs.scores[held_out].astype(float), their_groups)
        print(f"{len(held_out)} pairs\n\n{agreement_table([found])}")

    def scored(asked: Sequence[Question]) -> np.ndarray:
        return student.score([q.frames for q in asked], [q.instruction for q in asked]).totals

    exact = scored([Question(c.frames, c.instruction, c.frames) for c in clips])
    print(
        f"{len(clips)} clips of {len({c.group_id for c in clips})} groups, as they were {exact.mean():.2f}\n"
    )
    print(
        "| trial | questions | gap, or in the first third | second | last | wins |\n|---|---|---|---|---|---|"
    )
    for name in args.trials:
        asked = untaught(name, clips) if name in UNTAUGHT else questions(name, clips)
        if asked:
            print(row(name, asked, scored([question for _, question in asked]), exact, clips), flush=True)


if __name__ == "__main__":
    main()
