"""How well each judge ranks the rollouts of one prompt: the measured gain when the judge picks the best one.

A bench ranks judges over clips that differ widely. GRPO compares the samples of one prompt, which differ little, and
can learn only from the reward's differences between these. So every judge picks the best of a prompt's samples, and the
picks are measured against the real continuation. The pick by measurement is the upper bound. Rollouts of other world
models on the same windows are measured too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.evaluation.bootstrap import bootstrap_mean, paired_difference
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.judge.bench.pair_maker import SourceClip
from roboalign_ray.judge.privileged.measure import PrivilegedTeacher
from roboalign_ray.judge.protocol import JudgeRequest
from roboalign_ray.judge.rubric import DIMENSIONS, names
from roboalign_ray.judge.student.model import with_start
from roboalign_ray.judge.validation.agreement import without_nan
from roboalign_ray.judge.validation.selection import mean_known, picked, rank_within
from roboalign_ray.pipelines.cluster.weight_folders import world_model_folder
from roboalign_ray.pipelines.evaluate.job import Bench, make_bench
from roboalign_ray.pipelines.evaluate.judge_panel import JUDGE_TITLES, PRIVILEGED, Panel, make_panel
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import RewardInput, Scored
from roboalign_ray.world_model.protocol import first_view

MEASUREMENT = "measurement"
BASE = "base"


@dataclass
class Rollouts:
    """Samples of every window, of one model or of several seeds of a run.

    Attributes:
        points: float64 [E, S, 6], measured points; NaN in all six if a sample cannot be measured.
        shares: name to float64 [E, S]: the measured shares that the points consist of.
        liked: judge to float64 [E, S], more is better; NaN if it gave no score.
    """

    points: np.ndarray
    shares: dict[str, np.ndarray] = field(default_factory=dict)
    liked: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def total(self) -> np.ndarray:
        """Float64 [E, S]: measured total, 0 to 10."""
        return self.points.sum(axis=-1)

    def at(self, windows: np.ndarray) -> Rollouts:
        """A subset of the windows."""
        return Rollouts(
            self.points[windows],
            {name: values[windows] for name, values in self.shares.items()},
            {name: values[windows] for name, values in self.liked.items()},
        )


def together(parts: Sequence[Rollouts]) -> Rollouts:
    """Samples of several models as if of one model."""
    points = np.concatenate([part.points for part in parts], axis=1)
    shares = {name: np.concatenate([part.shares[name] for part in parts], axis=1) for name in parts[0].shares}
    return Rollouts(points, shares)


def run_select(
    config: JobConfig,
    *,
    samples: int = 8,
    models: Mapping[str, Sequence[Path]] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Roll held-out windows out, let every judge pick, and measure the picks.

    Args:
        config: the judges in `evaluation.judges` pick, and SSIM and LPIPS too, on `evaluation.judged_windows` windows.
        samples: rollouts of each window.
        models: name to folders of other world models, whose rollouts of the same windows with the same seeds are
            measured; several folders under one name count as one model with more samples.
        quiet: show no progress.

    Returns:
        the results, as `write_selection` writes them.

    Raises:
        UserError: weights, store or a judge cannot be read, a model has another layout, or nothing can be measured.
    """
    models = models or {}
    config = check_ready(Preflight("select", config))
    folders = [folder for found in models.values() for folder in found]
    for folder in folders:  # checked before the judges start
        check_ready(Preflight("select", config, model=folder))
    base = world_model_folder(config)
    bench = make_bench(config, horizon=config.rollout.horizon, episodes=1, model=base)
    panel = make_panel(config, bench)
    count = len(panel.sources) * samples * (1 + len(folders))
    with Progress("selection", total=count, unit="rollout", quiet=quiet) as progress:
        roller = _Roller(bench, panel, samples, progress)
        found = roller.roll(base, judged=True)
        if not np.isfinite(found.points).any():
            raise UserError(
                "no rollout can be measured: the held-out episodes lack masks of hand and object, or contacts",
                where=config.episodes.store,
            )
        others = {
            name: together([roller.roll(folder, judged=False) for folder in alike])
            for name, alike in models.items()
        }
    return summary(found, others)


class _Roller:
    """The windows, their judges, and the measurement."""

    def __init__(self, bench: Bench, panel: Panel, samples: int, progress: Progress) -> None:
        self._bench, self._panel, self._samples, self._progress = bench, panel, samples, progress
        self._measure = PrivilegedTeacher(bench.config.bench.privileged)
        self._fidelity = FidelityReward(bench.config.reward.fidelity, bench.lpips)
        self._judges = {
            name: judge for name, judge in panel.judges.items() if name != JUDGE_TITLES[PRIVILEGED]
        }

    def roll(self, model: Path, *, judged: bool) -> Rollouts:
        """A model's rollouts, scored by all judges or by measurement alone; every call uses the same seeds."""
        opened = self._bench.model(model)
        found = Rollouts(np.full((len(self._panel.sources), self._samples, len(DIMENSIONS)), np.nan))
        rng = np.random.default_rng(self._bench.config.seed)
        for row, (source, prompt) in enumerate(zip(self._panel.sources, self._panel.prompts, strict=True)):
            seeds = tuple(rng.integers(2**31, size=self._samples).tolist())
            [group] = opened.rollout([prompt], [seeds])
            generated = first_view(opened.decode(group))
            self._measured(found, row, source, generated)
            if judged:
                self._judged(found, row, source, generated)
                self._compared(found, row, source, generated)
            self._progress.advance(self._samples)
        if judged:
            found.liked[MEASUREMENT] = found.total
        return found

    def _measured(self, found: Rollouts, row: int, source: SourceClip, generated: np.ndarray) -> None:
        assert source.reference is not None  # `judged_sources` leaves out windows without one
        for sample, video in enumerate(with_start(source.window.frames[0], generated)):
            score = self._measure.score(video, source.reference)
            points = score.scores()
            if not isinstance(points, Failed):
                found.points[row, sample] = points
            for name, share in score.measurements.items():
                self._of(found.shares, name)[row, sample] = share

    def _judged(self, found: Rollouts, row: int, source: SourceClip, generated: np.ndarray) -> None:
        window = source.window
        videos = with_start(window.frames[0], generated)
        requests = [JudgeRequest(video, source.fps, window.instruction) for video in videos]
        for name, judge in self._judges.items():
            liked = self._of(found.liked, name)
            for sample, outcome in enumerate(judge.judge(requests)):
                if not isinstance(outcome, Failed):
                    liked[row, sample] = outcome.total

    def _compared(self, found: Rollouts, row: int, source: SourceClip, generated: np.ndarray) -> None:
        window = source.window
        frames = window.frames[:, None]  # one view
        asked = RewardInput(window.instruction, frames[0], generated[:, :, None], frames[1:])
        near, alike = (self._of(found.liked, name) for name in (self._bench.lpips.label, "SSIM"))
        for sample, score in enumerate(self._fidelity.score(asked)):
            if isinstance(score, Scored):
                near[row, sample] = -score.components["lpips"]
                alike[row, sample] = score.components["ssim"]

    def _of(self, table: dict[str, np.ndarray], name: str) -> np.ndarray:
        """A name's array [E, S]; a new one is NaN."""
        return table.setdefault(name, np.full((len(self._panel.sources), self._samples), np.nan))


# --- results -----------------------------------------------------------------------------------------------------


def summary(base: Rollouts, others: Mapping[str, Rollouts]) -> dict[str, Any]:
    """JSON types only, null where undefined: every judge's picks, and the rollouts of other models.

    Windows without any measured sample of the base are left out. Gains are paired over windows.
    """
    known = np.isfinite(base.total).any(axis=1)
    base, others = base.at(known), {name: found.at(known) for name, found in others.items()}
    total, blind = base.total, mean_known(base.points)
    selection = {
        "windows": int(known.sum()),
        "unmeasured_windows": int((~known).sum()),
        "samples": total.shape[1],
        "spread": {
            "between": float(np.std(mean_known(total))),
            "within": float(np.mean(np.nanstd(total, axis=1))),
        },
        "blind": _points(blind),
        "judges": {name: _pick(base, liked) for name, liked in base.liked.items()},
        "models": _models(blind.sum(axis=-1), others),
        "shares": {
            name: {
                BASE: _mean(mean_known(before)),
                "changes": {
                    model: _change(mean_known(before), mean_known(found.shares[name]))
                    for model, found in others.items()
                },
            }
            for name, before in base.shares.items()
        },
    }
    return without_nan(selection)


def _pick(base: Rollouts, liked: np.ndarray) -> dict[str, Any]:
    picks = picked(base.points, liked)
    return {
        **_points(picks),
        "gain": _change(mean_known(base.total), picks.sum(axis=-1)),
        "rank": bootstrap_mean(rank_within(base.total, liked)).as_json(),
        "failed": int((~np.isfinite(liked)).sum()),
    }


def _models(before: np.ndarray, others: Mapping[str, Rollouts]) -> dict[str, Any]:
    """Points, gain over the base, and the difference between the first two."""
    after = {name: mean_known(found.total) for name, found in others.items()}
    first = next(iter(after.values()), before)
    return {
        name: {
            **_points(mean_known(found.points)),
            "gain": _change(before, after[name]),
            "behind_first": _change(after[name], first),
        }
        for name, found in others.items()
    }


def _points(points: np.ndarray) -> dict[str, float]:
    """Means over windows of [E, 6]; a row is complete or all NaN."""
    means = [_mean(column) for column in points.T]
    return {**dict(zip(names(), means, strict=True)), "total": sum(means)}


def _mean(values: np.ndarray) -> float:
    return bootstrap_mean(values, 1).mean


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    return paired_difference(before, after).difference.as_json()


def selection_table(selection: Mapping[str, Any]) -> str:
    """Markdown: the judge, the measured points of its picks, and the gain over a random sample."""
    spread, blind = selection["spread"], selection["blind"]
    lines = [
        f"Of {selection['windows']} windows, the best of {selection['samples']} rollouts each. Standard deviation "
        f"of the measured total: {spread['between']:.3f} between windows, {spread['within']:.3f} within one.",
        *(
            [f"Left out: {selection['unmeasured_windows']} windows without a measurement."]
            if selection["unmeasured_windows"]
            else []
        ),
        "",
        f"| Picked by | {_TITLES} | gain, 95 % interval | rank correlation within a window | not scored |",
        "|---" * 11 + "|",
        f"| none (random sample) | {_cells(blind)} | | | |",
    ]
    for name, row in selection["judges"].items():
        ranks = _interval_text(row["rank"])
        lines.append(f"| {name} | {_cells(row)} | {_gain(row, blind)} | {ranks} | {row['failed']} |")
    return "\n".join(lines) + "\n"


def models_table(selection: Mapping[str, Any]) -> str:
    """Markdown: measured points of the base and of the other models without picking, then the measured shares."""
    blind, models = selection["blind"], selection["models"]
    lead = f" lead of {next(iter(models))}" if models else ""
    lines = [
        f"| Model | {_TITLES} | gain, 95 % interval |{lead} |",
        "|---" * 10 + "|",
        f"| {BASE} | {_cells(blind)} | | |",
    ]
    for number, (name, row) in enumerate(models.items()):
        ahead = _interval_text(row["behind_first"]) if number else ""
        lines.append(f"| {name} | {_cells(row)} | {_gain(row, blind)} | {ahead} |")
    lines += ["", f"| Measured share | {' | '.join([BASE, *models])} |", "|---" * (len(models) + 2) + "|"]
    for name, row in selection["shares"].items():
        cells = [_number(row[BASE]), *(_interval_text(row["changes"][model]) for model in models)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_TITLES = " | ".join([*(f"{d.title} /{d.maximum}" for d in DIMENSIONS), "Total /10"])


def _gain(row: Mapping[str, Any], blind: Mapping[str, float]) -> str:
    mean = row["gain"]["mean"]
    share = f", {100 * mean / blind['total']:+.1f} %" if mean is not None and blind["total"] else ""
    return f"{_interval_text(row['gain'])}{share}"


def _cells(row: Mapping[str, float | None]) -> str:
    return " | ".join(_number(row[name]) for name in (*names(), "total"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval_text(interval: Mapping[str, float | None]) -> str:
    if interval["mean"] is None:
        return "–"
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def write_selection(selection: Mapping[str, Any], out: Path) -> None:
    """`out/selection.json` and `out/selection.md`."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "selection.json": json.dumps(selection, indent=2) + "\n",
        "selection.md": f"{selection_table(selection)}\n{models_table(selection)}",
    }
    for name, text in texts.items():
        with whole_file(out / name) as draft:
            draft.write_text(text, encoding="utf-8")
