"""How much the rewards of a group's samples differ, for several ways of making them: what there is to learn from.

    training windows ─► shared, self-generated history ─► samples ─► rewards ─► deviation within the group / mean

An objective learns from differences within a group alone. Where they are small beside the reward itself, post-training
moves nothing: a diffusion world model that samples plainly gives 2 to 4 %, a token model 30 %. One process, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from roboalign_ray.alignment.objectives.spread import relative_deviation
from roboalign_ray.config import JobConfig, RolloutConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.cluster.weight_folders import (
    student_folder,
    tokenizer_folder,
    world_model_folder,
)
from roboalign_ray.rewards.group_scorer import score_rollout
from roboalign_ray.rewards.protocol import Score, Scored
from roboalign_ray.rewards.registry import build_reward
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.branching import branched_rollouts
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import ModelCard, WorldModel
from roboalign_ray.world_model.refresh import check_clips, check_refresh
from roboalign_ray.world_model.registry import check_world_model, open_world_model

ENOUGH = 0.1  # relative deviation within a group


@dataclass(frozen=True)
class SpreadRow:
    """One way of making samples.

    Attributes:
        way: the settings that differ from the job's.
        frames: of a sample.
        reward: mean total.
        best: mean over groups of the best total.
        deviation: mean over groups of the totals' standard deviation, relative to the size of their mean.
        components: the same of each component of the reward.
        groups, failed: groups with at least two scores, and samples without one.
    """

    way: str
    frames: int
    reward: float
    best: float
    deviation: float
    components: dict[str, float]
    groups: int
    failed: int

    @property
    def enough(self) -> bool:
        """Whether there is something to learn from."""
        return self.deviation >= ENOUGH


@dataclass(frozen=True)
class SpreadRequest:
    """What to measure on.

    Attributes:
        groups, samples: prompts of the training split, and samples of each.
        history: frames that the model generates before the samples part; 0 starts from real frames.
        frames: lengths of a sample.
    """

    groups: int = 8
    samples: int = 8
    history: int = 8
    frames: tuple[int, ...] = (4,)


def run_spread(
    config: JobConfig,
    ways: Sequence[tuple[str, RolloutConfig]],
    request: SpreadRequest,
    *,
    quiet: bool = False,
) -> list[SpreadRow]:
    """A row per way and length of sample; the same prompts, seeds and history lengths everywhere.

    Args:
        config: world model, store and reward.
        ways: a name and the settings of rollouts.

    Raises:
        UserError: the model cannot do what a way asks for, or no window is long enough.
    """
    folder, tokenizer = world_model_folder(config), tokenizer_folder(config)
    card = check_world_model(folder, tokenizer=tokenizer)
    for _, rollout in ways:
        check_refresh(rollout.refresh, card)
    for frames in (request.history, *request.frames):
        check_clips(frames, card, "spread")
    scores, rows = _Scores(config, request, card), []
    with Progress("spread", total=len(ways) * len(request.frames), unit="row", quiet=quiet) as progress:
        for way, rollout in ways:
            model = open_world_model(folder, rollout, tokenizer=tokenizer)
            for frames in request.frames:
                rows.append(spread_row(way, frames, scores.of(model, frames)))
                progress.advance()
    return rows


class _Scores:
    """Scores of groups that any model makes of the same prompts and seeds."""

    def __init__(self, config: JobConfig, request: SpreadRequest, card: ModelCard) -> None:
        longest = request.history + max(request.frames)
        windows = config.rollout.model_copy(update={"horizon": longest})
        schedule = schedule_from_store(config.episodes, windows, config.seed)
        self._names, self._history = schedule.train(0, request.groups), request.history
        self._seeds = schedule.seeds(0, request.groups, request.samples)
        self._reader = PromptReader(config.episodes, card.height, card.width, card.views)
        student = Student.load(student_folder(config)) if config.reward.needs_judge else None
        self._reward = build_reward(config.reward, student)

    def of(self, model: WorldModel, frames: int) -> list[Sequence[Score]]:
        """Per group, those of samples of so many frames behind the shared history."""
        total, shared = self._history + frames, self._history
        names = [replace(name, horizon=total, shared=shared) for name in self._names]
        prompts = [self._reader.prompt(name, total) for name in names]
        made = branched_rollouts(model, prompts, [shared] * len(names), self._seeds)
        return [score_rollout(group, model, self._reader, self._reward) for group in made]


def spread_row(way: str, frames: int, groups: Sequence[Sequence[Score]]) -> SpreadRow:
    """The figures of one way's groups.

    Raises:
        UserError: no group has two scores.
    """
    scored = [[score for score in group if isinstance(score, Scored)] for group in groups]
    kept = [group for group in scored if len(group) > 1]
    if not kept:
        reason = next(
            (s.reason for group in groups for s in group if isinstance(s, Failed)), "one sample each"
        )
        raise UserError(f"no group has two scores ({reason})", where=way)
    totals = [np.array([score.total for score in group]) for group in kept]
    names = sorted(set.intersection(*({*score.components} for group in kept for score in group)))
    return SpreadRow(
        way=way,
        frames=frames,
        reward=float(np.mean([values.mean() for values in totals])),
        best=float(np.mean([values.max() for values in totals])),
        deviation=float(np.mean([relative_deviation(values) for values in totals])),
        components={
            name: float(
                np.mean([relative_deviation(np.array([s.components[name] for s in group])) for group in kept])
            )
            for name in names
        },
        groups=len(kept),
        failed=sum(map(len, groups)) - sum(map(len, scored)),
    )


def spread_json(rows: Sequence[SpreadRow]) -> list[dict[str, Any]]:
    """JSON types, a row each."""
    return [asdict(row) | {"enough": row.enough} for row in rows]


def print_spread(rows: Sequence[SpreadRow]) -> None:
    """The rows as a table on standard output, and what they mean."""
    from rich.console import Console

    from roboalign_ray.pipelines.cli.tables import Column, print_columns

    console = Console(markup=False, highlight=False)
    columns = [
        Column("frames", [str(row.frames) for row in rows]),
        Column("reward", [f"{row.reward:.4g}" for row in rows]),
        Column("best", [f"{row.best:.4g}" for row in rows]),
        Column("deviation", [f"{row.deviation:.1%}" for row in rows]),
        *(
            Column(name, [f"{row.components.get(name, float('nan')):.1%}" for row in rows])
            for name in sorted({name for row in rows for name in row.components})
        ),
    ]
    print_columns(console, Column("samples made by", [row.way for row in rows]), columns)
    if (few := sum(not row.enough for row in rows)) == len(rows):
        console.print(
            f"no way gives a deviation of {ENOUGH:.0%} within a group: there is little to learn from"
        )
    elif few:
        console.print(f"{few} of {len(rows)} ways stay below a deviation of {ENOUGH:.0%} within a group")
