"""What the distances of all pairs of frames tell alone, and a student that begins with what they have learned.

    python benchmarks/order_of_frames.py --pairs runs/parts
    python benchmarks/order_of_frames.py --pairs runs/parts --student runs/student --out runs/begun

Trains the student's `OrderOfFrames` and its own linear way to the scores, without pixels or sentence, on clips whose
frames come in another order or at another pace; prints the points that it takes off held-out clips, by third. With
`--student` it is put into that student, which further distillation goes on from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import degrade
from roboalign_ray.judge.bench.parts import THIRDS
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.rubric import maxima, normalise
from roboalign_ray.judge.student.clips import prepare_clips
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.on_the_fly_examples import OF_ORDER, STRENGTHS
from roboalign_ray.judge.student.order import PICTURES, OrderOfFrames

HELD_OUT, BATCH, ROUNDS, RATE = 0.1, 64, 60, 2e-3
FAULTLESS = ("real", "counterfactual")

Examples = tuple[Tensor, Tensor, np.ndarray]
"""Distances [N, pairs]; points lost as shares, 0 or below [N, 6]; and rule times three plus third, -1 for no rule."""


def examples(
    pairs: LabelledPairs, positions: Sequence[int], module: OrderOfFrames, count: int, *, tried: bool
) -> Examples:
    """Every clip as it is, and spoiled by `count` rules; rollouts as they are alone."""
    rng, config = np.random.default_rng(int(tried)), StudentConfig.small()
    seen, lost, kinds = [], [], []
    for position in positions:
        pair = pairs.read(int(position))
        shown = [pair.frames]
        lost.append(np.zeros(len(maxima())))
        kinds.append(-1)
        rules = (
            rng.choice(len(OF_ORDER), count, replace=False) if pair.kind.split("/")[0] in FAULTLESS else ()
        )
        for rule in rules:
            third, strength = int(rng.integers(THIRDS)), 1.0 if tried else float(rng.choice(STRENGTHS))
            material = Material(third=third)
            made = degrade(
                OF_ORDER[rule], pair.frames, pair.instruction, pair.scores, strength, rng, material
            )
            shown.append(made.frames)
            lost.append(normalise(made.scores) - normalise(pair.scores))
            kinds.append(THIRDS * rule + third)
        clips = torch.from_numpy(prepare_clips(shown, config)[:, :, :PICTURES]).float() / 255
        with torch.no_grad():
            seen.append(module.distances(clips))
    return torch.cat(seen), torch.from_numpy(np.stack(lost)).float(), np.array(kinds)


def train(module: OrderOfFrames, head: nn.Linear, made: Examples) -> None:
    """Many rounds over the examples."""
    seen, lost, _ = made
    parameters = [*module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.05)
    steps = ROUNDS * -(-len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    module.train()
    for _ in range(ROUNDS):
        for drawn in torch.randperm(len(seen)).split(BATCH):
            loss = F.huber_loss(head(module.layers(seen[drawn])), lost[drawn], delta=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()


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


def main() -> None:
    """Parse, train, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, action="append", required=True, help="stores of pairs")
    parser.add_argument("--clips", type=int, default=1500, help="faultless clips of the train split")
    parser.add_argument("--rollouts", type=int, default=400, help="rollouts of the train split")
    parser.add_argument("--student", type=Path, help="folder of a student to put it into")
    parser.add_argument("--out", type=Path, help="where that student goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs, rng = LabelledPairs(args.pairs), np.random.default_rng(0)
    student = Student.load(args.student) if args.student else Student(StudentConfig.small())
    assert student.order is not None
    module = OrderOfFrames(student.config, student.order.width)
    head = nn.Linear(student.order.width, len(maxima()), bias=False)
    first = [pairs.kinds[n].split("/")[0] for n in range(len(pairs))]
    train_split, held_out = pairs.split("train", HELD_OUT), pairs.split("held_out", HELD_OUT)
    clips = rng.permutation([n for n in train_split if first[n] in FAULTLESS])[: args.clips]
    rollouts = rng.permutation([n for n in train_split if first[n] == "rollout"])[: args.rollouts]
    train(module, head, examples(pairs, [*clips, *rollouts], module, 2, tried=False))
    real = [n for n in held_out if first[n] == "real"][:60]
    seen, _, kinds = examples(pairs, real, module, len(OF_ORDER), tried=True)
    with torch.no_grad():
        taken = -(head(module.layers(seen)).numpy() * maxima()).sum(-1)
    print("| rule | points taken off, first third | second | last |\n|---|---|---|---|")
    print(f"| none | {taken[kinds == -1].mean():.2f} | | |")
    for rule, name in enumerate(OF_ORDER):
        cells = [f"{taken[kinds == THIRDS * rule + third].mean():.2f}" for third in range(THIRDS)]
        print(f"| {name} | {' | '.join(cells)} |")
    if args.out:
        begun(student, module, head).save(args.out)


if __name__ == "__main__":
    main()
