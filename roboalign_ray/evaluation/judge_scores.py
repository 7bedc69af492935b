"""Rubric scores of world models: rollouts of held-out windows, scored by several judges.

RoboAlign-R1 (arXiv 2605.03821) reports the six dimensions of RobotWorldBench before and after alignment. The scores
depend on the judge, so every table here names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.evaluation.bootstrap import PairedDifference, bootstrap_mean, paired_difference
from roboalign_ray.evaluation.report.data import Table
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.bench.pair_maker import SourceClip
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, TeacherJudge
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.judge.student.model import with_start
from roboalign_ray.judge.validation.alarms import motion_share
from roboalign_ray.judge.validation.selection import mean_known
from roboalign_ray.world_model.protocol import Prompt, WorldModel, first_view

TOTAL = "total"


@dataclass(frozen=True)
class JudgedResult:
    """One judge's scores of one model's rollouts.

    Attributes:
        judge: name of the judge.
        scores: float64 [E, S, 6], rubric points per window and sample; NaN where there is no score.
        episodes: the episode of every window, E names; if empty, every window has one of its own.
        motion: float64 [E, S], motion of the rollouts as a share of the real clips'; NaN where nothing real moves.
            The same for every judge. None where it was not measured.
    """

    judge: str
    scores: np.ndarray
    episodes: tuple[str, ...] = ()
    motion: np.ndarray | None = None

    def per_window(self, dimension: int | None = None) -> np.ndarray:
        """Float64 [E]: mean over samples of a dimension, or of the total by default; NaN if no sample has a score."""
        values = self.scores.sum(axis=-1) if dimension is None else self.scores[..., dimension]
        return mean_known(values)

    @property
    def failed(self) -> int:
        """Rollouts without a score."""
        return int((~np.isfinite(self.scores).all(axis=-1)).sum())


@dataclass(frozen=True)
class ShownClip:
    """One judged rollout, to be shown in the report.

    Attributes:
        title: the instruction and the window.
        frames: uint8 [T, H, W, 3], start frame first.
        judgements: by judge: the judgement, or the reason why there is none.
    """

    title: str
    frames: np.ndarray
    judgements: Mapping[str, Judgement | Failed]


def judge_rollouts(
    model: WorldModel,
    sources: Sequence[SourceClip],
    prompts: Sequence[Prompt],
    judges: Mapping[str, TeacherJudge],
    *,
    samples: int,
    seed: int = 0,
    batch: int = 16,
    show: int = 0,
) -> tuple[dict[str, JudgedResult], list[ShownClip]]:
    """Roll the windows out and score them with every judge.

    Args:
        model: predicts the number of frames in its config.
        sources: held-out windows with their reference data; each has one frame more than a rollout.
        prompts: of the same windows; judges are shown the first view.
        judges: by the name that tables show.
        samples: rollouts per window; every call uses the same seeds.
        seed: seed of the rollouts.
        batch: windows rolled out together.
        show: number of windows whose first sample is kept, with the judgements.

    Returns:
        results by judge, with the motion of the rollouts' first view, and the kept clips.

    Raises:
        UserError: there is no window.
    """
    if not sources:
        raise UserError("no held-out window to judge", where="evaluation")
    seeds = np.random.default_rng([seed, len(sources)]).integers(2**31, size=(len(sources), samples)).tolist()
    scores = {name: np.full((len(sources), samples, len(DIMENSIONS)), np.nan) for name in judges}
    motion = np.full((len(sources), samples), np.nan)
    shown: list[ShownClip] = []
    for first in range(0, len(sources), batch):
        part = list(sources[first : first + batch])
        some = list(prompts[first : first + batch])
        groups = model.rollout(some, [tuple(row) for row in seeds[first : first + batch]])
        for place, (source, group) in enumerate(zip(part, groups, strict=True), start=first):
            videos = with_start(source.window.frames[0], first_view(model.decode(group)))
            motion[place] = [motion_share(video, source.window.frames) for video in videos]
            judged = _judge_samples(source, videos, judges)
            for name, outcomes in judged.items():
                for sample, outcome in enumerate(outcomes):
                    if not isinstance(outcome, Failed):
                        scores[name][place, sample] = outcome.scores
            if len(shown) < show:
                title = f"“{group.instruction}” ({group.prompt_id})"
                firsts = {name: outcomes[0] for name, outcomes in judged.items()}
                shown.append(ShownClip(title, videos[0], firsts))
    episodes = tuple(source.window.episode_id for source in sources)
    return {
        name: JudgedResult(name, values, episodes=episodes, motion=motion) for name, values in scores.items()
    }, shown


def _judge_samples(
    source: SourceClip, videos: np.ndarray, judges: Mapping[str, TeacherJudge]
) -> dict[str, list[Judgement | Failed]]:
    instruction, name = source.window.instruction, f"{source.window.episode_id}@{source.window.start}"
    requests = [JudgeRequest(video, source.fps, instruction, source.reference, name) for video in videos]
    return {label: judge.judge(requests) for label, judge in judges.items()}


def compare_judged(
    before: JudgedResult, after: JudgedResult, dimension: int | None = None, *, resamples: int = 2000
) -> PairedDifference:
    """After minus before over the same windows, of a dimension or of the total."""
    values = before.per_window(dimension), after.per_window(dimension)
    return paired_difference(*values, resamples=resamples, episodes=before.episodes)


def judged_table(
    before: Mapping[str, JudgedResult], after: Mapping[str, JudgedResult], *, title: str, note: str = ""
) -> Table:
    """Every judge's mean before and after, and the change with its 95 % interval, per dimension and in total."""
    columns = ["dimension"]
    for name in before:
        columns += [f"{name}: before", "after", "change"]
    rows: list[list[float | int | str]] = []
    for number, label in [
        *((n, f"{d.title} /{d.maximum}") for n, d in enumerate(DIMENSIONS)),
        (None, "Total /10"),
    ]:
        row: list[float | int | str] = [label]
        for name in before:
            means = [bootstrap_mean(side[name].per_window(number), 1).mean for side in (before, after)]
            change = compare_judged(before[name], after[name], number).difference
            row += [*means, f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"]
        rows.append(row)
    return Table(title, columns, rows, note, digits=[None, *([3, 3, None] * len(before))])
