"""Scores held-out rollouts by the rubric: chooses the windows and the judges, and makes the report's section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.config.job import BUILT_IN_JUDGES
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.episodes.windows import held_out_windows
from roboalign_ray.evaluation.bootstrap import extent, resampling
from roboalign_ray.evaluation.judge_scores import JudgedResult, ShownClip, judge_rollouts, judged_table
from roboalign_ray.evaluation.report.data import JudgedClip, JudgedSection
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.readers import read_lines
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.judge.bench.pair_maker import PairMaker, SourceClip
from roboalign_ray.judge.privileged.judge import PrivilegedJudge
from roboalign_ray.judge.protocol import Judgement, TeacherJudge
from roboalign_ray.judge.registry import ExtensionJudge
from roboalign_ray.judge.student.judge import StudentJudge
from roboalign_ray.judge.student.model import Student
from roboalign_ray.pipelines.align.job import EVENTS, AlignResult
from roboalign_ray.pipelines.cluster.weight_folders import student_folder
from roboalign_ray.pipelines.evaluate.job import Bench
from roboalign_ray.world_model.prompts import PromptReader, prompt_spec
from roboalign_ray.world_model.protocol import Prompt

PRIVILEGED = "privileged"
JUDGE_TITLES = {
    "student": "student",
    "vlm": "VLM teacher",
    PRIVILEGED: PRIVILEGED,
}  # titles of the built-in judges of `evaluation.judges`; other judges are shown by their names
_EXPLANATIONS = {
    "student": "The student is the one that the run began with.",
    "vlm": "The VLM teacher is shown the rollout alone.",
    PRIVILEGED: "“Privileged” measures against the real continuation and the simulator's state.",
}
SHOWN = 4  # judged rollouts in a report


@dataclass(frozen=True)
class Panel:
    """Held-out windows with their reference data, and judges by name.

    Attributes:
        prompts: prompts of the sources, with all views that the world model predicts.
    """

    sources: Sequence[SourceClip]
    prompts: Sequence[Prompt]
    judges: Mapping[str, TeacherJudge]


def judged_sources(config: JobConfig, height: int, width: int, count: int) -> list[SourceClip]:
    """`count` held-out windows that begin like prompts; windows whose real clip has no reference are left out.

    Raises:
        UserError: no window is left.
    """
    spec = prompt_spec(config.episodes, config.rollout.horizon, height, width)
    store = open_store(config.episodes.store)
    maker = PairMaker(store, spec, config.bench)
    windows = held_out_windows(
        store,
        spec,
        count,
        fraction=config.episodes.held_out_fraction,
        completing=config.rollout.completing,
    )
    sources = [maker.source(window.episode_id, window.start) for window in windows]
    known = [
        source for source in sources if source.reference is not None and source.window.instruction.strip()
    ]
    if not known:
        raise UserError(
            "no held-out window has an instruction and a reference to judge by", where=config.episodes.store
        )
    return known


def make_panel(config: JobConfig, bench: Bench) -> Panel:
    """The windows and the judges of `evaluation.judges`.

    Raises:
        UserError: a judge cannot be loaded.
    """
    card = bench.decoder.card
    judges = {judge_title(name): _judge(name, config, bench) for name in config.evaluation.judges}
    sources = judged_sources(config, card.height, card.width, config.evaluation.judged_windows)
    reader = PromptReader(config.episodes, card.height, card.width, card.views)
    names = [PromptName(source.window.episode_id, source.window.start) for source in sources]
    prompts = [reader.prompt(name, config.rollout.horizon) for name in names]
    return Panel(sources, prompts, judges)


def judge_title(name: str) -> str:
    """Title of a judge of `evaluation.judges` in tables."""
    return JUDGE_TITLES.get(name, name)


def _judge(name: str, config: JobConfig, bench: Bench) -> TeacherJudge:
    if name == "student":
        return StudentJudge(Student.load(student_folder(config)).to(bench.device))
    if name == PRIVILEGED:
        return PrivilegedJudge(config.bench.privileged)
    if name not in BUILT_IN_JUDGES:
        return ExtensionJudge(name, "evaluation.judges")
    from roboalign_ray.actors.teacher import open_vlm

    return open_vlm(config.teacher)


def run_judged(
    panel: Panel, bench: Bench, model: Path, label: str, *, show: int = 0, quiet: bool = False
) -> tuple[dict[str, JudgedResult], list[ShownClip]]:
    """Roll one world model out on the panel's windows, and score the rollouts with every judge."""
    settings = bench.config.evaluation
    rollouts = len(panel.sources) * settings.judged_samples
    with Progress(f"{label}, judged", total=rollouts, unit="rollout", quiet=quiet) as progress:
        found = judge_rollouts(
            bench.model(model),
            panel.sources,
            panel.prompts,
            panel.judges,
            samples=settings.judged_samples,
            seed=bench.config.seed,
            show=show,
        )
        progress.advance(rollouts)
    return found


def judged_scope(config: JobConfig, result: JudgedResult) -> str:
    """What the judges scored."""
    windows = extent(len(result.scores), len(set(result.episodes)))
    return f"{windows}, {config.rollout.horizon} frames each"


def judged_section(
    config: JobConfig,
    aligned: AlignResult,
    out: Path,
    before: Mapping[str, JudgedResult],
    after: Mapping[str, JudgedResult],
    clips: Sequence[ShownClip],
) -> JudgedSection:
    """The report's section: scores by dimension, student and teacher over the run, and rollouts with reasons."""
    first = next(iter(before.values()))
    note = f"Rubric points on {judged_scope(config, first)}, {config.evaluation.judged_samples} rollouts each, same "
    note += f"seeds. {resampling(len(first.scores), len(set(first.episodes)))}"
    note += "".join(f" {_EXPLANATIONS[name]}" for name, title in JUDGE_TITLES.items() if title in before)
    return JudgedSection(
        table=judged_table(before, after, title="Scores by dimension", note=note),
        drift=_drift(aligned),
        events=event_lines(out / EVENTS, JUDGE_TITLES.get(config.judge.relabel.teacher, "")),
        clips=[_clip(shown) for shown in clips],
    )


def _drift(aligned: AlignResult) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    curves = aligned.curves
    pairs = {
        "Held-out rollouts, total of ten": "held_out/{}_total",
        "Fresh training rollouts, total of ten": "judge/{}_total",
    }
    found = {}
    for title, name in pairs.items():
        sides = {
            side: curves[name.format(side)] for side in ("student", "teacher") if name.format(side) in curves
        }
        if sides:
            found[title] = sides
    return found


def event_lines(path: Path, teacher: str) -> list[str]:
    """The judge's events as sentences; `teacher` is the name of the labelling teacher."""
    if not path.is_file():
        return []
    lines = []
    for event in read_lines(path, "judge event", keys=("event",)):
        after = f"After update {event.get('update')}"
        if event["event"] == "relabelled":
            gaps = min(row["gap"] for row in event["gate"]["rows"])
            lines.append(
                f"{after}: relabelled ({teacher}, round {event['round']}, {event['cause']}); student version "
                f"{event['version']} passed the gate, smallest gap {gaps:.0%}."
            )
        elif event["event"] == "relabelling failed":
            lines.append(
                f"{after}: relabelling round {event['round']} failed ({event['message']}); "
                "the previous student stays in use."
            )
        elif event["event"] == "alarm":
            lines.append(f"{after}: alarm ({event['kind']}): {event['message']}.")
    return lines


def _clip(shown: ShownClip) -> JudgedClip:
    rows = [(judge, _points(outcome)) for judge, outcome in shown.judgements.items()]
    reasons = [
        f"{judge}: {outcome.rationale}"
        for judge, outcome in shown.judgements.items()
        if isinstance(outcome, Judgement) and outcome.rationale
    ]
    return JudgedClip(shown.title, shown.frames, rows, " ".join(reasons))


def _points(outcome: Judgement | Failed) -> np.ndarray:
    if isinstance(outcome, Failed):
        return np.full(7, np.nan)
    return np.array([*outcome.scores, outcome.total])
