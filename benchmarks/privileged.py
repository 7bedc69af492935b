"""How far the privileged teacher, which measures, agrees with those who know: the simulator, and rules.

    python benchmarks/privileged.py
    python benchmarks/privileged.py --store runs/store --groups 100

Two sets of clips of simulated episodes, both measured against the real clip of an expert, as a generated video is:

    simulator     the expert's own clip, and what other actions did from the same start state: videos of the right and
                  of wrong outcomes. Labelled by the simulator's state, which knows nothing of the expert's actions and
                  calls all pictures sound: following the instruction and success can be compared, the rest cannot.
    rules         the expert's own clip, spoiled by every degradation of RobotWorldBench at a random strength. Labelled
                  by rule.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import WindowSpec
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.bench.degradation_table import WHOLE, degrade
from roboalign_ray.judge.bench.pair_maker import PairMaker, SourceClip
from roboalign_ray.judge.validation.agreement import agreement, agreement_table

Judged = tuple[str, str, np.ndarray, np.ndarray]  # set, group, measured [6], labels [6]
_LEAST = 3  # frames of a clip that is measured
_UNSEEN = "wrong_instruction"  # the frames are right: a teacher that compares frames alone cannot know


def clips(args: argparse.Namespace) -> Iterator[Judged]:
    """Every clip that both can judge."""
    config = load_job("demo")
    spec = WindowSpec(config.bench.frames, stride=config.episodes.frame_stride, view=config.episodes.view)
    maker = PairMaker(open_store(args.store), spec, config.bench)
    index = maker.index()
    rng = np.random.default_rng(0)
    groups = sorted(set(index.groups))
    for group in rng.permutation(groups)[: args.groups]:
        members = [n for n, of in enumerate(index.groups) if of == group]
        found = {index.ids[n].rsplit("/", 1)[-1]: source(maker, n) for n in members}
        expert = found.get("expert")
        if expert is None or expert.reference is None:
            continue
        for other in found.values():
            if other is not None:
                yield from judged("simulator", maker, expert, other.window.frames, other.score.scores())
        for rule in WHOLE:
            name = rule.name
            material = maker.material(expert, rng, rule.needs)
            if name != _UNSEEN and rule.possible(material):
                window, points = expert.window, expert.reference.scores
                strength = float(rng.uniform(0.1, 1.0))
                spoiled = degrade(name, window.frames, window.instruction, points, strength, rng, material)
                yield from judged("rules", maker, expert, spoiled.frames, spoiled.scores)


def source(maker: PairMaker, episode: int) -> SourceClip | None:
    """From an episode's first frame, which all variants of a start share; None where it is too short."""
    try:
        return maker.source(episode, 0)
    except EpisodeError:
        return None


def judged(
    name: str, maker: PairMaker, expert: SourceClip, frames: np.ndarray, labels: np.ndarray | Failed
) -> Iterator[Judged]:
    """One clip, where both could judge it."""
    assert expert.reference is not None
    if len(frames) < _LEAST:  # cut off before anything could happen
        return
    measured = maker.teacher.score(frames, expert.reference).scores()
    if not isinstance(measured, Failed) and not isinstance(labels, Failed):
        yield name, expert.group_id, measured, labels


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="shipped", help="simulated episodes with their variants")
    parser.add_argument("--groups", type=int, default=1000, help="start states at most")
    args = parser.parse_args()
    rows = list(clips(args))
    judges = []
    for name in ("simulator", "rules"):
        chosen = [row for row in rows if row[0] == name]
        measured, labels = (np.stack([row[column] for row in chosen]) for column in (2, 3))
        judges.append(
            agreement(f"against {name}, {len(chosen)} clips", measured, labels, [row[1] for row in chosen])
        )
    print(agreement_table(judges))


if __name__ == "__main__":
    main()
