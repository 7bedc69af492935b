"""What the distances of all pairs of frames tell alone, and a student that begins with what they have learned.

    python benchmarks/order_of_frames.py --episodes runs/store --rollouts runs/rolls
    python benchmarks/order_of_frames.py --episodes runs/store --rollouts runs/rolls --student STUDENT --out runs/begun

Trains the student's `OrderOfFrames` and its own linear way to the scores, without pixels or sentence, on clips whose
frames come in another order or at another pace. Rules of order only move frames about: all distances of an episode's
frames are computed once, and a spoiled clip is a choice of rows and columns. Prints the points that are taken off
held-out clips, by third. With `--student` it is put into that student, which further distillation goes on from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.episodes.splits import split_of
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import completing_starts
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import DEGRADATIONS
from roboalign_ray.judge.bench.parts import THIRDS, seen_by_frame
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.clips import picture_positions
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.on_the_fly_examples import OF_ORDER, STRENGTHS
from roboalign_ray.judge.student.order import IN_TIME, OrderOfFrames, pair_distances, shrunk

HELD_OUT, FRAMES, STRIDE = 0.1, 13, 2
BATCH, ROUNDS, RATE, DELTA = 128, 10, 2e-3, 0.1
# Shares of examples without a rule, of these that are rollouts, and of clips that show their task being done.
SOUND, ROLLED, COMPLETING = 0.4, 0.3, 0.75
TRIED = 6  # clips of every held-out episode


@dataclass(frozen=True)
class Recording:
    """Distances of all pairs of an episode's frames, or of a rollout's.

    Attributes:
        apart: float [kinds, T, T], as `pair_distances` gives them.
        differ: float [T, T], how well one can be distinguished from the other (`parts.seen`).
        starts: of clips that show the task being done; empty where there is none.
        stride: frames from one of a clip to the next.
    """

    apart: np.ndarray
    differ: np.ndarray
    starts: Sequence[int]
    stride: int

    def clip(self, rng: np.random.Generator) -> np.ndarray:
        """Frames of a clip drawn at random, int64 [FRAMES]."""
        last = len(self.differ) - (FRAMES - 1) * self.stride
        done = len(self.starts) and rng.random() < COMPLETING
        start = int(rng.choice(self.starts)) if done else int(rng.integers(last))
        return start + self.stride * np.arange(FRAMES)

    def seen(self, frames: np.ndarray, spoiled: np.ndarray) -> float:
        """How well a spoiled clip can be distinguished from the clip that it was."""
        length = min(len(frames), len(spoiled))
        return float(self.differ[frames[:length], spoiled[:length]].max())


def recording(frames: np.ndarray, config: StudentConfig, starts: Sequence[int], stride: int) -> Recording:
    """Of frames uint8 [T, H, W, 3]."""
    count, pairs = len(frames), torch.triu_indices(len(frames), len(frames))
    small = shrunk(torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).float() / 255)
    apart = torch.zeros(1 + config.order_places, count, count)
    apart[:, pairs[0], pairs[1]] = pair_distances(small[None], pairs, places=config.order_places)[0]
    apart[:, pairs[1], pairs[0]] = apart[:, pairs[0], pairs[1]].clone()
    differ = np.zeros((count, count))
    for lag in range(1, count):
        ahead = np.arange(count - lag)
        differ[ahead, ahead + lag] = differ[ahead + lag, ahead] = seen_by_frame(frames[:-lag], frames[lag:])
    return Recording(apart.numpy(), differ, starts, stride)


def recordings(folder: Path, config: StudentConfig, split: str) -> list[Recording]:
    """Of all episodes of a split."""
    store = open_store(folder)
    found, done = [], store.successes()
    for number, group in enumerate(store.group_ids):
        if split_of(group, HELD_OUT) == split:
            frames = next(iter(store.read(number).frames.values()))
            starts = completing_starts(len(frames), done[number], (FRAMES - 1) * STRIDE + 1)
            found.append(recording(frames, config, starts, STRIDE))
    return found


def rolled(folders: Sequence[Path], config: StudentConfig) -> list[Recording]:
    """Of all rollouts of the train split."""
    if not folders:
        return []
    pairs = LabelledPairs(folders)
    rollouts = [n for n in pairs.split("train", HELD_OUT) if pairs.kinds[n].startswith("rollout")]
    return [recording(pairs.read(int(n)).frames, config, (), 1) for n in rollouts]


def spoiled(
    frames: np.ndarray, name: str, third: int, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Which frames come, in which order, where a rule has been at work."""
    made = DEGRADATIONS[name].rule(frames[:, None, None, None], strength, rng, Material(third=third))
    return made[:, 0, 0, 0]


def distances(found: Recording, frames: np.ndarray, config: StudentConfig) -> np.ndarray:
    """What `OrderOfFrames` sees of these frames, float32 [features]."""
    shown = frames[picture_positions(len(frames), config)[:, IN_TIME].reshape(-1)]
    first, second = np.triu_indices(len(shown), k=1)
    return found.apart[:, shown[first], shown[second]].reshape(-1).astype(np.float32)


def examples(
    episodes: Sequence[Recording], rollouts: Sequence[Recording], config: StudentConfig, count: int
) -> tuple[Tensor, Tensor]:
    """Distances [count, features], and shares lost, 0 or below [count, 6]."""
    rng, seen, lost = np.random.default_rng(0), [], []
    for _ in range(count):
        sound = rng.random() < SOUND
        source = rollouts if sound and rollouts and rng.random() < ROLLED else episodes
        found = source[rng.integers(len(source))]
        frames, loss = found.clip(rng), np.zeros(len(maxima()))
        if not sound:
            name, third = OF_ORDER[rng.integers(len(OF_ORDER))], int(rng.integers(THIRDS))
            after = spoiled(frames, name, third, float(rng.choice(STRENGTHS)), rng)
            loss = -found.seen(frames, after) * np.array(DEGRADATIONS[name].lost)
            frames = after
        seen.append(distances(found, frames, config))
        lost.append(loss)
    return torch.from_numpy(np.stack(seen)), torch.from_numpy(np.stack(lost)).float()


def train(module: OrderOfFrames, head: nn.Linear, seen: Tensor, lost: Tensor) -> None:
    """Some rounds over the examples."""
    parameters = [*module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.05)
    steps = ROUNDS * (len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    module.train()
    for _ in range(ROUNDS):
        for drawn in torch.randperm(len(seen))[: len(seen) // BATCH * BATCH].split(BATCH):
            loss = F.huber_loss(head(module.layers(seen[drawn])), lost[drawn], delta=DELTA)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()


def tried(episodes: Sequence[Recording], config: StudentConfig) -> Iterator[tuple[str, int, np.ndarray]]:
    """Rule ("none" as well), third, and distances of held-out clips; what cannot be seen in full is left out."""
    rng = np.random.default_rng(1)
    for found in episodes:
        if not len(found.starts):
            continue
        for _ in range(TRIED):
            frames = found.clip(rng)
            yield "none", 0, distances(found, frames, config)
            for name in OF_ORDER:
                for third in range(THIRDS):
                    after = spoiled(frames, name, third, 1.0, rng)
                    if found.seen(frames, after) == 1:
                        yield name, third, distances(found, after, config)


def begun(student: Student, module: OrderOfFrames, head: nn.Linear) -> Student:
    """The student with this module in place of its own; nothing else in it has heard of the order yet."""
    state = student.state_dict()
    width = head.in_features
    state |= {f"order.{name}": value for name, value in module.state_dict().items()}
    state["order_head.weight"] = head.weight.detach()
    state["mixture.1.weight"][:, -width:] = 0
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        state[f"mixture.0.{name}"][-width:] = value
    student.load_state_dict(state)
    return student


def started(folder: Path | None) -> Student:
    """The student to put it into, in the demo's shape."""
    if folder is None:
        return Student(StudentConfig.small())
    student = Student.load(folder)
    return student if student.config.order_places else student.grown(StudentConfig.small())


def main() -> None:
    """Parse, train, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=Path, required=True, help="a store of episodes")
    parser.add_argument("--rollouts", type=Path, action="append", default=[], help="stores of pairs")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--student", type=Path, help="folder of a student to put it into")
    parser.add_argument("--out", type=Path, help="where that student goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = started(args.student)
    assert student.order is not None
    module = OrderOfFrames(student.config, student.order.width)
    head = nn.Linear(student.order.width, len(maxima()), bias=False)
    rollouts = rolled(args.rollouts, student.config)
    train_split = recordings(args.episodes, student.config, "train")
    train(module, head, *examples(train_split, rollouts, student.config, args.examples))
    names, thirds, seen = zip(
        *tried(recordings(args.episodes, student.config, "held_out"), student.config), strict=True
    )
    with torch.no_grad():
        taken = -(head(module.layers(torch.from_numpy(np.stack(seen)))).numpy() * maxima()).sum(-1)
    print("| rule | points taken off, first third | second | last |\n|---|---|---|---|")
    for name in ("none", *OF_ORDER):
        rows = [(np.array(names) == name) & (np.array(thirds) == third) for third in range(THIRDS)]
        print(f"| {name} | {' | '.join(f'{taken[row].mean():.2f}' if row.any() else '' for row in rows)} |")
    if args.out:
        begun(student, module, head).save(args.out)


if __name__ == "__main__":
    main()
