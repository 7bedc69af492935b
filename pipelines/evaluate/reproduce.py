"""Repeats two experiments with one command: the gain of a model by the reward it is aligned on, and the behaviour of a
weak judge without relabelling.

    out/
      <arm>-<seed>/        one alignment run each, as `roboalign align` writes it; complete runs are kept, others resume
      <arm>-<seed>.json    its rollouts on held-out windows, scored by every judge; new judges are added
      settings.json        settings of the experiment, which must stay the same
      alignment.md, hacking.md, hacking.png, *.json

Every arm begins with the same weights and makes the same number of updates on the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.evaluation.bootstrap import bootstrap_mean
from roboalign_ray.evaluation.judge_scores import JudgedResult
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.foundation.telemetry.metrics import read_curves
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.pipelines.align.job import ALIGNED, LOGS, run_align
from roboalign_ray.pipelines.align.settings_check import check_settings, keep_settings
from roboalign_ray.pipelines.cluster.weight_folders import world_model_folder
from roboalign_ray.pipelines.evaluate.job import Bench, make_bench
from roboalign_ray.pipelines.evaluate.judge_panel import (
    JUDGE_TITLES,
    PRIVILEGED,
    Panel,
    judge_title,
    make_panel,
    run_judged,
)
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready

BASE = "base"
MOTION = "motion / real"  # beside the judges in a file of scores
Change = Mapping[str, Any]
# The changes of an arm to the profile: dotted keys and values.
ALIGNMENT_ARMS: Mapping[str, Change] = {
    "judged": {"reward.fidelity.weight": 0.0, "reward.judged.weight": 1.0},
    "LPIPS only": {
        "reward.fidelity.weight": 1.0,
        "reward.judged.weight": 0.0,
        "reward.fidelity.ssim_weight": 0.0,
        "reward.fidelity.psnr_weight": 0.0,
    },
    "SSIM only": {
        "reward.fidelity.weight": 1.0,
        "reward.judged.weight": 0.0,
        "reward.fidelity.lpips_weight": 0.0,
        "reward.fidelity.psnr_weight": 0.0,
    },
}
HACKING_ARMS: Mapping[str, Change] = {
    "frozen": {"judge.relabel.every": 0},
    "re-distilled": {},
}


MAY_CHANGE = {
    *("name", "output", "cluster", "serving", "telemetry"),
    *("alignment.checkpoint_every", "alignment.checkpoints", "evaluation.judges"),
    *("teacher.labelling", "teacher.engine", "teacher.server"),
}  # the figures do not depend on these


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.arm.replace(',', '').replace(' ', '_')}-{self.seed}"


@one_job
def run_alignment(
    config: JobConfig, out: Path, *, seeds: int = 3, single: int = 1, quiet: bool = False
) -> dict[str, Any]:
    """Align on the judge's scores (`seeds` times) and on single metrics (`single` times each), and score the results.

    Args:
        config: the profile; its reward is replaced by each arm's.
        out: folder; complete parts in it are kept.

    Returns:
        the content of alignment.json.

    Raises:
        UserError: the folder holds an experiment with other settings; or as `run_align`.
    """
    runs = [Run("judged", seed) for seed in range(seeds)]
    runs += [Run(arm, seed) for arm in ALIGNMENT_ARMS if arm != "judged" for seed in range(single)]
    _check_before(runs, changed(config, ALIGNMENT_ARMS["judged"], config.seed), out)
    keep_settings(out, config, check_same_experiment, made=_made_before(out))
    judge_of = _Judges(config)
    base = _judged(judge_of, world_model_folder(config), out / f"{BASE}.json", quiet)
    results = {run: _made(config, run, ALIGNMENT_ARMS, judge_of, out, quiet) for run in runs}
    result = {
        "base": {judge: _summary(result) for judge, result in base.items()},
        "arms": {
            arm: {judge: total_gain(base[judge], _of(results, arm, judge)) for judge in base}
            for arm in ALIGNMENT_ARMS
        },
        "seeds": {arm: sum(run.arm == arm for run in runs) for arm in ALIGNMENT_ARMS},
        "updates": config.alignment.updates,
    }
    _write(out / "alignment.json", json.dumps(result, indent=2) + "\n")
    _write(out / "alignment.md", alignment_table(result))
    return result


@one_job
def run_hacking(config: JobConfig, out: Path, *, seeds: int = 1, quiet: bool = False) -> dict[str, Any]:
    """Align on a weak student, frozen and re-distilled with the same seeds; compare the teacher's score over the run.

    Args:
        config: the profile: `judge.weights` names the weak student; `judge.relabel.teacher` must be a measurement or a
            judge.
        out: folder; complete parts in it are kept.

    Raises:
        UserError: there is no teacher, the folder holds an experiment with other settings, or as `run_align`.
    """
    if config.judge.relabel.teacher == "none" or not config.judge.relabel.held_out_samples:
        raise UserError(
            "without a teacher, nothing shows that the student is weak",
            where="judge.relabel",
            remedy="set a teacher and held_out_samples",
        )
    _check_before([Run(arm, seed) for arm in HACKING_ARMS for seed in range(seeds)], config, out)
    keep_settings(out, config, check_same_experiment, made=_made_before(out))
    curves: dict[str, list[dict[str, Any]]] = {}
    for arm in HACKING_ARMS:
        for seed in range(seeds):
            run = Run(arm, seed)
            _aligned(changed(config, HACKING_ARMS[arm], seed), out / run.name, quiet)
            curves.setdefault(arm, []).append(_held_out(out / run.name))
    result = {"arms": curves, "teacher": config.judge.relabel.teacher, "updates": config.alignment.updates}
    _write(out / "hacking.json", json.dumps(result, indent=2) + "\n")
    _write(out / "hacking.md", hacking_table(result))
    draw_hacking(result, out / "hacking.png")
    return result


def check_same_experiment(before: Mapping[str, Any], config: JobConfig, where: str) -> None:
    """Check that complete parts were made with the same settings; judges may be added, and machines may differ.

    Raises:
        UserError: another setting differs.
    """
    asked = config.judge.relabel.teacher == "vlm" or JUDGE_TITLES["vlm"] in _read(
        Path(where) / f"{BASE}.json"
    )
    check_settings(before, config, where, MAY_CHANGE | (set() if asked else {"teacher"}))


def changed(config: JobConfig, change: Change, seed: int) -> JobConfig:
    """A profile with an arm's changes and a seed."""
    tree = config.model_dump()
    for key, value in {**change, "seed": seed}.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[name] = value
    return JobConfig.model_validate(tree)


def _check_before(runs: Sequence[Run], config: JobConfig, out: Path) -> None:
    """Check what the runs need, if any run is missing: a complete experiment needs nothing."""
    if not all((out / run.name / ALIGNED).is_dir() for run in runs):
        check_ready(Preflight("reproduce", config, out))


def _made_before(out: Path) -> list[Path]:
    """Number of arms that were begun, and of score files."""
    return [path for path in out.glob("*") if path.is_dir() or path.name == f"{BASE}.json"]


# --- one run -----------------------------------------------------------------------------------------------------


class _Judges:
    """Bench and panel, made at first use: a complete experiment needs neither."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._names = [judge_title(name) for name in config.evaluation.judges]
        self._made: tuple[Bench, Panel] | None = None

    def known(self, scores: Path) -> dict[str, JudgedResult] | None:
        """A file's scores of every judge; None if the file or one of the judges is missing."""
        known = _read(scores)
        return (
            {name: known[name] for name in self._names}
            if all(name in known for name in self._names)
            else None
        )

    def __call__(self) -> tuple[Bench, Panel]:
        if self._made is None:
            config = self._config
            bench = make_bench(
                config, horizon=config.rollout.horizon, episodes=1, model=world_model_folder(config)
            )
            self._made = bench, make_panel(config, bench)
        return self._made


def _aligned(config: JobConfig, folder: Path, quiet: bool) -> Path:
    """The run's model; a complete run is kept."""
    if not (folder / ALIGNED).is_dir():
        run_align(config, folder, resume=True, quiet=quiet)
    return folder / ALIGNED


def _made(
    config: JobConfig, run: Run, arms: Mapping[str, Change], judge_of: _Judges, out: Path, quiet: bool
) -> dict[str, JudgedResult]:
    scores = out / f"{run.name}.json"
    if (known := judge_of.known(scores)) is not None:
        return known
    if scores.is_file() and not (out / run.name / ALIGNED).is_dir():
        raise UserError(
            "a judge has not scored this arm, and its model is gone",
            where=str(out / run.name),
            remedy=f"remove {scores} to align it again, or leave the judge out of evaluation.judges",
        )
    model = _aligned(changed(config, arms[run.arm], run.seed), out / run.name, quiet)
    return _judged(judge_of, model, scores, quiet)


def _judged(judge_of: _Judges, model: Path, scores: Path, quiet: bool) -> dict[str, JudgedResult]:
    if (known := judge_of.known(scores)) is not None:
        return known
    bench, panel = judge_of()
    known = _read(scores)
    judges = {name: judge for name, judge in panel.judges.items() if name not in known}
    missing = Panel(panel.sources, panel.prompts, judges)
    found, _ = run_judged(missing, bench, model, scores.stem, quiet=quiet)
    known |= found
    content = {name: result.scores.tolist() for name, result in known.items()}
    for result in found.values():
        if result.motion is not None:
            content[MOTION] = result.motion.tolist()
    _write(scores, json.dumps(content) + "\n")
    stored = _read(scores)
    return {name: stored[name] for name in panel.judges}


def _read(path: Path) -> dict[str, JudgedResult]:
    """Every judge's scores in a file, and the motion of the rollouts if it was measured; empty if there is no file."""
    if not path.is_file():
        return {}
    content = read_object(path, "judges' scores", remedy="delete it, and the scores are computed again")
    arrays = {name: np.array(values, np.float64) for name, values in content.items()}
    motion = arrays.pop(MOTION, None)
    return {name: JudgedResult(name, values, motion=motion) for name, values in arrays.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


# --- alignment's table -------------------------------------------------------------------------------------------


def _of(results: Mapping[Run, Mapping[str, JudgedResult]], arm: str, judge: str) -> list[JudgedResult]:
    return [found[judge] for run, found in results.items() if run.arm == arm]


def _summary(result: JudgedResult) -> dict[str, Any]:
    """Mean per dimension, of the total, and of the rollouts' motion as a share of the real clips', if it is known."""
    motion = np.empty(0) if result.motion is None else result.motion[np.isfinite(result.motion)]
    return {
        **{d.name: float(np.nanmean(result.per_window(n))) for n, d in enumerate(DIMENSIONS)},
        "total": float(np.nanmean(result.per_window())),
        "failed": result.failed,
        **({"motion": float(motion.mean())} if motion.size else {}),
    }


def total_gain(base: JudgedResult, arms: Sequence[JudgedResult]) -> dict[str, Any]:
    """Means over seeds and windows, and the total's gain over the base with its interval over windows."""
    means = [_summary(result) for result in arms]
    names = [name for name in means[0] if all(name in mean for mean in means)]
    summary: dict[str, Any] = {name: float(np.mean([mean[name] for mean in means])) for name in names}
    change = np.mean([result.per_window() - base.per_window() for result in arms], axis=0)
    interval = bootstrap_mean(change, 2000)
    before = float(np.nanmean(base.per_window()))
    return {
        **summary,
        "gain": interval.as_json(),
        "gain_percent": 100 * interval.mean / before if before else None,
        "per_seed": [m["total"] for m in means],
    }


def alignment_table(result: Mapping[str, Any]) -> str:
    """Markdown: a table per judge, with the motion of the rollouts beside the scores: a still model may score well."""
    names = [d.name for d in DIMENSIONS]
    lines: list[str] = []
    for judge, base in result["base"].items():
        titles = [f"{d.title} /{d.maximum}" for d in DIMENSIONS]
        lines += [f"Scores by the {judge} judge:" if judge == PRIVILEGED else f"Scores by the {judge}:", ""]
        lines += [
            "| Aligned on | seeds | "
            + " | ".join([*titles, "Total /10", "gain, 95 % interval", "motion (real: 1)"])
            + " |"
        ]
        lines += ["|---" * (len(titles) + 5) + "|"]
        cells = [f"{base[name]:.3f}" for name in [*names, "total"]]
        lines.append(f"| nothing (base) | | {' | '.join(cells)} | | {_motion(base)} |")
        for arm, judges in result["arms"].items():
            row, gain = judges[judge], judges[judge]["gain"]
            cells = [f"{row[name]:.3f}" for name in [*names, "total"]]
            change = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            if row["gain_percent"] is not None:
                change += f", {row['gain_percent']:+.1f} %"
            cells += [change, _motion(row)]
            lines.append(f"| {arm} | {result['seeds'][arm]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _motion(summary: Mapping[str, Any]) -> str:
    return f"{summary['motion']:.2f}" if "motion" in summary else ""


# --- hacking's curves --------------------------------------------------------------------------------------------


def _held_out(folder: Path) -> dict[str, Any]:
    curves = read_curves(folder / LOGS)
    return {
        side: {
            "updates": curves[f"held_out/{side}_total"][0].tolist(),
            "totals": curves[f"held_out/{side}_total"][1].tolist(),
        }
        for side in ("student", "teacher")
    }


def hacking_table(result: Mapping[str, Any]) -> str:
    """Markdown: both judges' totals on held-out rollouts, first and last, per arm."""
    lines = [
        f"| Student | scored by the student | by the {result['teacher']} teacher |",
        "|---|---|---|",
    ]
    for arm, runs in result["arms"].items():
        cells = []
        for side in ("student", "teacher"):
            first = np.mean([run[side]["totals"][0] for run in runs])
            last = np.mean([run[side]["totals"][-1] for run in runs])
            cells.append(f"{first:.3f} → {last:.3f} ({last - first:+.3f})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_hacking(result: Mapping[str, Any], path: Path) -> None:
    """Both judges' totals over the run, one panel per arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(result["arms"]), figsize=(9, 3.4), sharey=True, squeeze=False)
    for axis, (arm, runs) in zip(axes[0], result["arms"].items(), strict=True):
        for side, style in (("student", "--"), ("teacher", "-")):
            totals = np.mean([run[side]["totals"] for run in runs], axis=0)
            label = f"{side} ({result['teacher']})" if side == "teacher" else side
            axis.plot(runs[0][side]["updates"], totals, style, label=label)
        axis.set_title(f"{arm} student")
        axis.set_xlabel("policy updates")
    axes[0][0].set_ylabel("held-out total of ten")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    with whole_file(path) as draft:
        figure.savefig(draft, format="png", dpi=120)
    pyplot.close(figure)
