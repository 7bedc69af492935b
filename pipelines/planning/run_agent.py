"""`roboalign agent run`: episodes of one agent in one task, with videos, figures and a page.

out/
  <start>.mp4     what happened beside what the plans predicted
  agent.json      every episode, the success rate with its interval
  agent.html      the same for readers
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.video import encode_browser_video
from roboalign_ray.evaluation.report.page import side_by_side, write_page
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.pipelines.planning.page import agent_page, panels
from roboalign_ray.pipelines.planning.parts import AgentParts
from roboalign_ray.planning.closed_loop.agents import Plan
from roboalign_ray.planning.closed_loop.episode import (
    EpisodeRecord,
    Recording,
    choose_starts,
    run_episode,
)
from roboalign_ray.planning.closed_loop.scene import Scene
from roboalign_ray.planning.closed_loop.table import TaskResult, as_json, task_result

FIGURES, PAGE = "agent.json", "agent.html"
_SCALE = 4  # of the videos


@one_job
def run_agent(
    config: JobConfig,
    task: str,
    out: Path,
    *,
    row: str,
    episodes: int = 1,
    command: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Run episodes from start states that no store has seen, and write what came of them.

    Args:
        config: `agent`, world model, simulator.
        task: a Meta-World task.
        out: folder.
        row: name of the agent, from `table.ROWS`.
        episodes: start states; those that are solved from the beginning are passed over.
        command: for the page.
        quiet: show no progress on the terminal.

    Returns:
        "success" of the task's `as_json`, "episodes", "page" and "videos".

    Raises:
        UserError: a name is unknown, or a part is missing or does not fit.
    """
    clock, parts = time.monotonic(), AgentParts(config)
    parts.check([row], [task])
    out.mkdir(parents=True, exist_ok=True)
    starts = choose_starts(parts.simulator(task), config.agent.first_start, episodes)
    done: list[tuple[EpisodeRecord, Recording]] = []
    total = len(starts.taken) * config.agent.decisions
    with Progress(f"{task}: {row}", total, unit="decision", quiet=quiet) as progress:
        for number, start in enumerate(starts.taken):
            before = number * config.agent.decisions

            def show(scene: Scene, plan: Plan | None, before: int = before) -> None:
                figures: dict[str, float | str] = {"object_target_cm": 100 * float(scene.distances()[0])}
                if plan is not None:
                    figures |= {"predicted": plan.predicted, "real": plan.real}
                progress.advance(before + len(scene.actions) - progress.done, **figures)

            agent = parts.agent(row, task, start)
            done.append(
                run_episode(row, parts.simulator(task), start, agent, config.agent.decisions, on_look=show)
            )
            progress.advance(before + config.agent.decisions - progress.done)
    result = task_result(task, [record for record, _ in done], starts)
    videos = [_write_video(out / f"{record.start}.mp4", made, parts) for record, made in done]
    page = agent_page(config, parts, row, result, done, command, time.monotonic() - clock)
    write_page(page, out / PAGE)
    return _write_figures(out, result, [record for record, _ in done], videos)


def _write_video(path: Path, made: Recording, parts: AgentParts) -> str:
    fps = parts.card.fps or 5.0
    with whole_file(path) as draft:
        draft.write_bytes(encode_browser_video(side_by_side(panels(made)), fps, scale=_SCALE))
    return str(path)


def _write_figures(
    out: Path, result: TaskResult, records: Sequence[EpisodeRecord], videos: Sequence[str]
) -> dict[str, Any]:
    summary = as_json([result])["tasks"][result.task]
    figures = {
        "task": result.task,
        **{name: summary[name] for name in ("rates", "costs", "starts_solved_already")},
        "episodes": [record.model_dump(mode="json") for record in records],
    }
    with whole_file(out / FIGURES) as draft:
        draft.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return {**figures, "page": str(out / PAGE), "videos": list(videos)}
