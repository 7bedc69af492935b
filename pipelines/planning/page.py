"""The pages of closed-loop planning: episodes of one agent, and the table of all rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.evaluation.plots import Series
from roboalign_ray.evaluation.report.data import Table
from roboalign_ray.evaluation.report.page import Page, PageChart, PageVideo
from roboalign_ray.foundation.environment import hardware, versions
from roboalign_ray.foundation.secrets import masked
from roboalign_ray.planning.closed_loop.episode import EpisodeRecord, Recording
from roboalign_ray.planning.closed_loop.table import MODEL, ROWS, TaskResult, as_json, gap_text, rate_text

if TYPE_CHECKING:
    from roboalign_ray.pipelines.planning.parts import AgentParts

_PACKAGES = ("roboalign-ray", "torch", "mujoco", "metaworld")
_EXPLOITS = (
    "Costs are those of whole plans, most of which are replaced before they end. A real cost above the predicted one "
    "shows how far a plan exploits mistakes of the model."
)


def panels(made: Recording) -> dict[str, np.ndarray]:
    """What happened beside what plans predicted, uint8 [T, H, V * W, 3] each; views stand side by side."""
    pictures = {"outcome": made.real, "plan": made.imagined}
    return {name: np.concatenate(list(frames.swapaxes(0, 1)), axis=2) for name, frames in pictures.items()}


def agent_page(
    config: JobConfig,
    parts: AgentParts,
    row: str,
    result: TaskResult,
    done: Sequence[tuple[EpisodeRecord, Recording]],
    command: Sequence[str],
    seconds: float,
) -> Page:
    """The page of one agent's episodes in one task."""
    rate = result.rates.get(row)
    solved, planned = sum(record.success for record, _ in done), [r for r, _ in done if r.predicted]
    return Page(
        title=f"Agent: {ROWS[row].title}",
        headline=f"{solved} of {len(done)} solved",
        sentence=f"{result.task}: {rate_text(rate)}, within {config.agent.decisions} decisions.",
        subject=_subject(config, parts),
        kind="better" if solved == len(done) else "worse" if not solved else "unclear",
        command=masked(shlex.join(command)),
        created=_now(),
        duration_s=seconds,
        fps=parts.card.fps or 5.0,
        tables=[_episodes_table([record for record, _ in done], planned=bool(planned))],
        charts=[_plans_chart(record) for record in planned],
        videos=[
            PageVideo(f"start {record.start}", "solved" if record.success else "not solved", panels(made))
            for record, made in done
        ],
        facts={
            "Seed": str(config.seed),
            "Starts solved already": str(result.solved),
            "Hardware": hardware(),
            **versions(_PACKAGES),
        },
        settings=config.public(),
    )


def table_page(
    config: JobConfig,
    parts: AgentParts,
    results: Sequence[TaskResult],
    command: Sequence[str],
    seconds: float,
) -> Page:
    """The page of all rows and tasks."""
    summary, tasks = as_json(results), [result.task for result in results]
    reached, counted = summary["tasks_reached"], summary["tasks_counted"]
    rows = [name for name in ROWS if any(name in result.rates for result in results)]
    judged = any(MODEL in result.rates for result in results)
    return Page(
        title="Closed-loop planning",
        headline=f"{reached} of {counted} tasks" if judged else f"{len(tasks)} tasks",
        sentence="The world model reaches the bar: 30 points above random actions, and 60 % of the same cost in the "
        "true simulator."
        if judged
        else "The rows so far; the world model's own is not among them.",
        subject=_subject(config, parts),
        kind="unclear" if not judged else "better" if 2 * reached >= counted > 0 else "worse",
        command=masked(shlex.join(command)),
        created=_now(),
        duration_s=seconds,
        tables=[
            Table(
                "Success rate",
                ["", *tasks],
                [
                    *([ROWS[name].title, *_cells(name, results)] for name in rows),
                    ["starts solved already", *(str(result.solved) for result in results)],
                    ["bar", *(result.verdict() for result in results)],
                ],
                note="With 95 % Wilson intervals. Start states are passed over where the task is complete already.",
            ),
            Table(
                "Predicted and real cost of plans",
                ["", *tasks],
                [
                    [ROWS[name].title, *(gap_text(result.gaps.get(name)) for result in results)]
                    for name in rows
                    if ROWS[name].dynamics is not None
                ],
                note=_EXPLOITS,
            ),
        ],
        facts={"Seed": str(config.seed), "Hardware": hardware(), **versions(_PACKAGES)},
        settings=config.public(),
    )


def _cells(row: str, results: Sequence[TaskResult]) -> list[str]:
    return [rate_text(result.rates.get(row)) for result in results]


def _subject(config: JobConfig, parts: AgentParts) -> str:
    agent, card = config.agent, parts.card
    return (
        f"World model of kind {card.kind}, {card.height}x{card.width}, {card.views} "
        f"{'view' if card.views == 1 else 'views'}, {card.fps:g} decisions a second. Plans of {agent.horizon} actions "
        f"by {agent.planner}, {agent.replan} of them executed."
    )


def _episodes_table(records: Sequence[EpisodeRecord], *, planned: bool) -> Table:
    columns = ["Start", "Solved", "Decisions", "Object to target, cm", "Hand to object, cm"]
    columns += ["Predicted cost", "Real cost", "Candidates", "Planning, s"] if planned else []
    return Table(
        "Episodes", columns, [_episode_row(r, planned=planned) for r in records], _EXPLOITS * planned
    )


def _episode_row(record: EpisodeRecord, *, planned: bool) -> list[float | int | str]:
    moved = [
        f"{100 * before:.1f} → {100 * after:.1f}"
        for before, after in zip(record.began, record.ended, strict=True)
    ]
    row: list[float | int | str] = [
        str(record.start),
        "yes" if record.success else "no",
        record.decisions,
        *moved,
    ]
    if planned:
        row += [float(np.mean(record.predicted)), float(np.mean(record.real))]
        row += [record.evaluated, record.planning_s]
    return row


def _plans_chart(record: EpisodeRecord) -> PageChart:
    plans = np.arange(1, len(record.predicted) + 1)
    costs: Mapping[str, tuple[float, ...]] = {"predicted": record.predicted, "real": record.real}
    return PageChart(
        f"Cost of each plan, start {record.start}",
        [
            Series(label, key, plans, np.array(values))
            for (label, values), key in zip(costs.items(), ("before", "after"), strict=True)
        ],
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
