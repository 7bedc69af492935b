"""The rows of the table of closed-loop planning, what they say of a task, and how far plans exploit the model.

| row                  | dynamics        | cost                | what its failure shows                               |
|----------------------|-----------------|---------------------|------------------------------------------------------|
| nothing, random      |                 |                     | a task that these solve measures nothing             |
| expert, held expert  |                 |                     | the ceiling; a task lost by the held one is left out |
| simulator+privileged | true simulator  | true distances      | the search                                           |
| simulator+progress   | true simulator  | learned from frames | the cost                                             |
| model+progress       | the world model | learned from frames | the world model                                      |
| model+goal, +student | the world model | goal image, judge   | beside the learned cost                              |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from roboalign_ray.evaluation.bootstrap import Interval
from roboalign_ray.evaluation.proportions import wilson
from roboalign_ray.planning.closed_loop.episode import EpisodeRecord, Starts

DynamicsName = Literal["model", "simulator"]
CostName = Literal["privileged", "progress", "goal", "student"]


@dataclass(frozen=True)
class Row:
    """An agent of the table.

    Attributes:
        title: for readers.
        dynamics, cost: of a planner; None for agents that do not plan.
    """

    title: str
    dynamics: DynamicsName | None = None
    cost: CostName | None = None


NOTHING, RANDOM, EXPERT, HELD = "nothing", "random", "expert", "held-expert"
SEARCH, COST, MODEL = "simulator+privileged", "simulator+progress", "model+progress"
ROWS: Mapping[str, Row] = {
    NOTHING: Row("do nothing"),
    RANDOM: Row("random smooth actions"),
    EXPERT: Row("expert, own rate"),
    HELD: Row("expert, rate of decisions"),
    SEARCH: Row("simulator, true distances", "simulator", "privileged"),
    COST: Row("simulator, learned cost", "simulator", "progress"),
    MODEL: Row("world model, learned cost", "model", "progress"),
    "model+goal": Row("world model, goal image", "model", "goal"),
    "model+student": Row("world model, student judge", "model", "student"),
}

CEILING = 0.8  # a task that the held expert solves less often is left out
ABOVE_RANDOM, OF_SIMULATOR = (
    0.3,
    0.6,
)  # the bar of a world model: success over random, share of the simulator's


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        task: its name.
        rates: success by row, with Wilson intervals; rows without episodes are absent.
        solved: start states that were passed over, because they are complete from the beginning.
        gaps: by planning row, mean predicted and mean real cost of all plans.
    """

    task: str
    rates: Mapping[str, Interval]
    solved: int
    gaps: Mapping[str, tuple[float, float]]

    @property
    def counts(self) -> bool:
        """Whether the ceiling allows the task to count; a task without the ceiling's row counts."""
        held = self.rates.get(HELD)
        return held is None or held.mean >= CEILING

    def verdict(self) -> str:
        """Whether the world model reaches the bar; if not, which part falls short, by the row that says so."""
        if not self.counts:
            return "left out: lost by the expert at this rate"
        if not {RANDOM, COST, MODEL} <= self.rates.keys():
            return "rows missing"
        random, cost, model = (self.rates[name].mean for name in (RANDOM, COST, MODEL))
        if model >= random + ABOVE_RANDOM and model >= OF_SIMULATOR * cost:
            return "reached"
        search = self.rates.get(SEARCH)
        if search is not None and search.mean < random + ABOVE_RANDOM:
            return f"search: {search.mean:.0%} even with true distances"
        if cost < random + ABOVE_RANDOM:
            return f"cost: {cost:.0%} even in the simulator"
        return f"world model: {model:.0%} where the simulator has {cost:.0%}"


def task_result(task: str, records: Sequence[EpisodeRecord], starts: Starts) -> TaskResult:
    """The result of a task's episodes, of any rows."""
    by_row = {name: [r for r in records if r.row == name and r.task == task] for name in ROWS}
    planned = {
        name: (np.concatenate([r.predicted for r in of]), np.concatenate([r.real for r in of]))
        for name, of in by_row.items()
        if ROWS[name].dynamics is not None and any(r.predicted for r in of)
    }
    return TaskResult(
        task=task,
        rates={name: wilson(sum(r.success for r in of), len(of)) for name, of in by_row.items() if of},
        solved=len(starts.solved),
        gaps={name: (float(p.mean()), float(r.mean())) for name, (p, r) in planned.items()},
    )


def as_json(results: Sequence[TaskResult]) -> dict[str, Any]:
    """JSON types: per task rates, gaps and verdict, and the share of counted tasks that reach the bar."""
    counted = [result for result in results if result.counts]
    return {
        "tasks": {
            result.task: {
                "rates": {
                    name: {**interval.as_json(), "n": interval.n} for name, interval in result.rates.items()
                },
                "costs": {
                    name: {"predicted": predicted, "real": real}
                    for name, (predicted, real) in result.gaps.items()
                },
                "starts_solved_already": result.solved,
                "verdict": result.verdict(),
            }
            for result in results
        },
        "tasks_counted": len(counted),
        "tasks_reached": sum(result.verdict() == "reached" for result in counted),
    }


def markdown(results: Sequence[TaskResult]) -> str:
    """Two tables: success by row and task, and predicted beside real costs."""
    tasks = [result.task for result in results]
    rule = "|---" * (len(tasks) + 1) + "|"
    lines = [f"| | {' | '.join(tasks)} |", rule]
    for name, row in ROWS.items():
        if any(name in result.rates for result in results):
            cells = (rate_text(result.rates.get(name)) for result in results)
            lines.append(f"| {row.title} | {' | '.join(cells)} |")
    lines.append(f"| starts solved already | {' | '.join(str(result.solved) for result in results)} |")
    lines.append(f"| bar | {' | '.join(result.verdict() for result in results)} |")
    planned = [name for name in ROWS if any(name in result.gaps for result in results)]
    if planned:
        lines += ["", f"| predicted / real cost of plans | {' | '.join(tasks)} |", rule]
        for name in planned:
            cells = (gap_text(result.gaps.get(name)) for result in results)
            lines.append(f"| {ROWS[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rate_text(interval: Interval | None) -> str:
    """ "80 % (48 to 94 %) of 10"."""
    if interval is None or not interval.n:
        return ""
    return f"{100 * interval.mean:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f} %) of {interval.n}"


def gap_text(gap: tuple[float, float] | None) -> str:
    """ "0.41 / 0.52"."""
    return "" if gap is None else f"{gap[0]:.3g} / {gap[1]:.3g}"
