"""How much a judge's pick among the rollouts of one prompt gains, by measurement: what it is worth as a reward.

A bench ranks judges over clips that differ widely. GRPO compares the samples of one prompt with each other, which
differ little, and no more can be learned from a reward than it can tell there. So every judge picks the best of a
prompt's samples, and the picks are measured against the real continuation. The pick by measurement itself is the most
that any judge could gain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluate import Bench, make_bench
from pipelines.judged import JUDGE_TITLES, PRIVILEGED, Panel, make_panel
from pipelines.weights import world_model_folder
from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.evaluation.bootstrap import Interval, bootstrap_mean, paired_difference
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.files import whole_file
from roboalign_ray.foundation.progress import Progress
from roboalign_ray.judge.agreement import without_nan
from roboalign_ray.judge.bench.making import SourceClip
from roboalign_ray.judge.bench.rollouts import source_prompt
from roboalign_ray.judge.privileged import PrivilegedTeacher
from roboalign_ray.judge.rubric import DIMENSIONS, names
from roboalign_ray.judge.selection import mean_known, picked, rank_within
from roboalign_ray.judge.student import with_start
from roboalign_ray.judge.teacher.protocol import JudgeRequest
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import RewardInput, Scored

MEASUREMENT = "measurement"
BASE = "base"


@dataclass
class Rollouts:
    """One model's samples of every window.

    Attributes:
        points: float64 [E, S, 6], by measurement; NaN where it cannot be measured.
        shares: name to float64 [E, S]: what the points are made of.
        liked: judge to float64 [E, S], more is better; NaN where it gave no score.
    """

    points: np.ndarray
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    liked: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, table: dict[str, np.ndarray], name: str) -> np.ndarray:
        """A name's array in `shares` or `liked`; NaN all over where it is new."""
        return table.setdefault(name, np.full(self.points.shape[:2], np.nan))


def run_select(
    config: JobConfig, *, samples: int = 8, models: Sequence[Path] = (), quiet: bool = False
) -> dict[str, Any]:
    """Roll held-out windows out, let every judge pick, and measure what it picked.

    Args:
        config: `evaluation.judges` pick, beside SSIM and LPIPS; `evaluation.judged_windows` says of how many windows.
        samples: rollouts of each.
        models: folders of other world models, whose rollouts of the same windows with the same seeds are measured.
        quiet: no progress on the terminal.

    Returns:
        what `write_selection` writes.

    Raises:
        UserError: weights, store or a judge cannot be read, or no window has a reference.
    """
    strangers = [str(path) for path in models if not path.is_dir()]
    if strangers:
        raise UserError("no such world model folder", where=", ".join(strangers))
    base = world_model_folder(config)
    bench = make_bench(config, horizon=config.rollout.horizon, episodes=1, model=base)
    panel = make_panel(config, bench)
    rows = len(panel.sources) * (1 + len(models))
    with Progress("selection", total=rows * samples, unit="rollout", quiet=quiet) as progress:
        rolled = _Roller(bench, panel, samples, progress)
        found = rolled.roll(base, judged=True)
        if not np.isfinite(found.points).any():
            raise UserError(
                "no rollout can be measured: the held-out episodes lack masks of hand and object, or contacts",
                where=config.episodes.store,
            )
        others = {str(path): rolled.roll(path, judged=False) for path in models}
    return summary(found, others)


class _Roller:
    """Windows, all who judge them, and measurement."""

    def __init__(self, bench: Bench, panel: Panel, samples: int, progress: Progress) -> None:
        self._bench, self._panel, self._samples, self._progress = bench, panel, samples, progress
        self._measure = PrivilegedTeacher(bench.config.bench.privileged)
        self._fidelity = FidelityReward(bench.config.reward.fidelity, bench.lpips)

    def roll(self, model: Path, *, judged: bool) -> Rollouts:
        """A model's rollouts, by all judges or by measurement alone; the same seeds at every call."""
        engine, binner = self._bench.engine(model), ActionBinner.load(model)
        found = Rollouts(np.full((len(self._panel.sources), self._samples, len(DIMENSIONS)), np.nan))
        rng = np.random.default_rng(self._bench.config.seed)
        for row, source in enumerate(self._panel.sources):
            seeds = tuple(rng.integers(2**31, size=self._samples).tolist())
            [group] = engine.rollout([source_prompt(source, binner)], [seeds])
            generated = engine.decode(group)
            self._measured(found, row, source, generated)
            if judged:
                self._judged(found, row, source, generated)
                self._compared(found, row, source, generated)
            self._progress.advance(self._samples)
        found.liked[MEASUREMENT] = found.points.sum(axis=-1)
        return found

    def _measured(self, found: Rollouts, row: int, source: SourceClip, generated: np.ndarray) -> None:
        assert source.reference is not None  # `judged_sources` leaves the others out
        for sample, video in enumerate(with_start(source.window.frames[0], generated)):
            score = self._measure.score(video, source.reference)
            points = score.scores()
            if not isinstance(points, Failed):
                found.points[row, sample] = points
            for name, share in score.measurements.items():
                found.of(found.shares, name)[row, sample] = share

    def _judged(self, found: Rollouts, row: int, source: SourceClip, generated: np.ndarray) -> None:
        window = source.window
        videos = with_start(window.frames[0], generated)
        requests = [JudgeRequest(video, source.fps, window.instruction) for video in videos]
        for name, judge in self._panel.judges.items():
            if name != JUDGE_TITLES[PRIVILEGED]:
                liked = found.of(found.liked, name)
                for sample, told in enumerate(judge.judge(requests)):
                    if not isinstance(told, Failed):
                        liked[row, sample] = told.total

    def _compared(self, found: Rollouts, row: int, source: SourceClip, generated: np.ndarray) -> None:
        window = source.window
        asked = RewardInput(window.instruction, window.frames[0], generated, window.frames[1:])
        near, alike = (found.of(found.liked, name) for name in (self._bench.lpips.label, "SSIM"))
        for sample, score in enumerate(self._fidelity.score(asked)):
            if isinstance(score, Scored):
                near[row, sample] = -score.components["lpips"]
                alike[row, sample] = score.components["ssim"]


# --- what is told ------------------------------------------------------------------------------------------------


def summary(base: Rollouts, others: Mapping[str, Rollouts]) -> dict[str, Any]:
    """JSON types only, null where undefined: points and gain of every judge's pick, spreads, shares of all models."""
    total = base.liked[MEASUREMENT]
    blind = mean_known(base.points)
    told = {
        "windows": len(total),
        "samples": total.shape[1],
        "spread": {
            "between": float(np.nanstd(mean_known(total))),
            "within": float(np.nanmean(np.nanstd(total, axis=1))),
        },
        "blind": _points(blind),
        "judges": {
            name: {
                **_points(picks := picked(base.points, liked)),
                "gain": _interval(paired_difference(blind.sum(axis=-1), picks.sum(axis=-1)).difference),
                "rank": _interval(bootstrap_mean(rank_within(total, liked))),
            }
            for name, liked in base.liked.items()
        },
        "models": {
            model: {
                **_points(found.points.reshape(-1, len(DIMENSIONS))),
                "gain": _interval(
                    paired_difference(mean_known(total), mean_known(found.liked[MEASUREMENT])).difference
                ),
            }
            for model, found in others.items()
        },
        "shares": {
            name: {
                BASE: float(np.nanmean(before)),
                **{
                    model: _interval(
                        paired_difference(mean_known(before), mean_known(found.shares[name])).difference
                    )
                    for model, found in others.items()
                },
            }
            for name, before in base.shares.items()
        },
    }
    return without_nan(told)


def _points(points: np.ndarray) -> dict[str, float]:
    """Means of [N, 6], a row of which is known as a whole or not at all."""
    [means] = mean_known(points[None])
    return {**dict(zip(names(), map(float, means), strict=True)), "total": float(means.sum())}


def _interval(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def selection_table(told: Mapping[str, Any]) -> str:
    """Markdown: who picks, the measured points of the picks, the gain over a sample taken blindly."""
    spread, blind = told["spread"], told["blind"]
    titles = [f"{d.title} /{d.maximum}" for d in DIMENSIONS]
    lines = [
        f"Of {told['windows']} windows, the best of {told['samples']} rollouts each. Standard deviation of the "
        f"measured total: {spread['between']:.3f} between windows, {spread['within']:.3f} within one.",
        "",
        f"| Picked by | {' | '.join(titles)} | Total /10 | gain, 95 % interval | rank correlation within a window |",
        "|---" * (len(titles) + 4) + "|",
        f"| nobody | {_cells(blind)} | | |",
    ]
    for name, row in told["judges"].items():
        lines.append(f"| {name} | {_cells(row)} | {_gain(row, blind)} | {_told(row['rank'])} |")
    return "\n".join(lines) + "\n"


def models_table(told: Mapping[str, Any]) -> str:
    """Markdown: measured points of the base and of the other models, nobody picking; then what these are made of."""
    blind, models = told["blind"], told["models"]
    titles = [f"{d.title} /{d.maximum}" for d in DIMENSIONS]
    lines = [
        f"| Model | {' | '.join(titles)} | Total /10 | gain, 95 % interval |",
        "|---" * (len(titles) + 3) + "|",
        f"| {BASE} | {_cells(blind)} | |",
        *(f"| {name} | {_cells(row)} | {_gain(row, blind)} |" for name, row in models.items()),
        "",
        f"| Measured share | {' | '.join([BASE, *models])} |",
        "|---" * (len(models) + 2) + "|",
    ]
    for name, row in told["shares"].items():
        lines.append(f"| {name} | {' | '.join([f'{row[BASE]:.3f}', *(_told(row[m]) for m in models)])} |")
    return "\n".join(lines) + "\n"


def _gain(row: Mapping[str, Any], blind: Mapping[str, float]) -> str:
    mean = row["gain"]["mean"]
    share = f", {100 * mean / blind['total']:+.1f} %" if mean is not None and blind["total"] else ""
    return f"{_told(row['gain'])}{share}"


def _cells(row: Mapping[str, float | None]) -> str:
    cells = (row[name] for name in (*names(), "total"))
    return " | ".join("–" if value is None else f"{value:.3f}" for value in cells)


def _told(interval: Mapping[str, float | None]) -> str:
    if interval["mean"] is None:
        return "–"
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def write_selection(told: Mapping[str, Any], out: Path) -> None:
    """`out/selection.json` and `out/selection.md`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "selection.json": json.dumps(told, indent=2) + "\n",
        "selection.md": f"{selection_table(told)}\n{models_table(told)}",
    }
    for name, text in texts.items():
        with whole_file(out / name) as draft:
            draft.write_text(text, encoding="utf-8")
