"""Three ways to post-train a diffusion world model, on equal terms, and what each is worth in a long rollout.

    base ─┬─ teacher-forced            real frames as history, real targets
          ├─ self-rollout, supervised  own frames as history, real targets
          └─ self-rollout, RL          own frames as history, rewards of own samples

    out/
      <arm>-<seed>/      one job each, as `pretrain` or `align` writes it; complete runs are kept, others resume
      <arm>-<seed>.npz   its figures of every window, view and frame, and the first windows' frames; also base, still
      settings.json      settings of the experiment, which must stay the same
      persistence.json, persistence.md, report.html

Every arm begins with the same weights and takes equally many optimizer steps on equally many clips. The first two are
pre-training that starts from the base, the third is an alignment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from roboalign_ray.config import JobConfig
from roboalign_ray.evaluation.protocols import copied_first
from roboalign_ray.evaluation.results import CLIP_METRICS, MetricCurves
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.storage.readers import read_arrays
from roboalign_ray.metrics.frame_metrics import FRAME_METRICS
from roboalign_ray.pipelines.align.job import ALIGNED, run_align
from roboalign_ray.pipelines.align.settings_check import check_settings, keep_settings
from roboalign_ray.pipelines.cluster.weight_folders import world_model_folder
from roboalign_ray.pipelines.evaluate.job import Bench, make_bench, run_rollouts
from roboalign_ray.pipelines.evaluate.persistence_report import as_json, write_page, written
from roboalign_ray.pipelines.evaluate.reproduce import MAY_CHANGE, Run, changed
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.train_job import SUMMARY
from roboalign_ray.pipelines.train.world_model import run_pretrain

BASE, STILL = "base", "copy first frame"
REINFORCED = "self-rollout, RL"
# Share of windows that continue the model's own frames, of the arms that train on real targets.
SUPERVISED_ARMS: Mapping[str, float] = {"teacher-forced": 0.0, "self-rollout, supervised": 1.0}
ARMS = (*SUPERVISED_ARMS, REINFORCED)
RESULT, TABLES, PAGE = "persistence.json", "persistence.md", "report.html"
_WORLD_MODEL: Final = "world_model"
_CLIPS = 4  # windows whose frames are kept


@dataclass(frozen=True)
class Measured:
    """One model on the held-out windows.

    Attributes:
        metrics: per window, frame and view.
        frames: uint8 [K, T, V, H, W, 3] of the first K windows.
    """

    metrics: MetricCurves
    frames: np.ndarray


@one_job
def run_persistence(
    config: JobConfig, out: Path, *, command: Sequence[str], seeds: int = 3, quiet: bool = False
) -> dict[str, Any]:
    """Post-train every arm with every seed, measure all models on the same windows, and compare them.

    Args:
        config: the profile. `alignment` is the third arm's; the other two take `diffusion.training`, with as many
            steps and clips as the alignment has.
        out: folder; complete parts in it are kept, and incomplete ones resume.
        command: the command line that repeats the experiment.
        seeds: runs of each arm.

    Returns:
        the content of persistence.json.

    Raises:
        UserError: the folder holds an experiment with other settings; the world model is of another kind; the clips
            of an update are no whole windows; or as `run_align` and `run_pretrain`.
    """
    began, out = time.monotonic(), out.absolute()
    runs = [Run(arm, seed) for seed in range(seeds) for arm in ARMS]
    config, given = _checked(config, out, runs), config
    keep_settings(out, given, _check_same, made=[*out.glob("*-*"), *out.glob("*.npz")])
    measure = _Measure(config, out, quiet)
    base = measure.model(BASE, measure.base)
    models = {run: measure.run(run) for run in runs}
    bench = measure.bench
    metrics = {BASE: [base.metrics]}
    metrics |= {arm: [models[run].metrics for run in runs if run.arm == arm] for arm in ARMS}
    metrics[STILL] = [copied_first(bench.windows, bench.lpips, config.evaluation)]
    terms = {"optimizer_steps": optimizer_steps(config), "clips_per_step": clips_per_step(config)}
    result = as_json(bench, metrics, terms | {"seeds": seeds})
    _write(out / RESULT, json.dumps(result, indent=1) + "\n")
    _write(out / TABLES, written(metrics))
    first = {BASE: base} | {run.arm: found for run, found in models.items() if run.seed == 0}
    write_page(bench, metrics, first, terms, out / Run(REINFORCED, 0).name, out / PAGE, command, began)
    return result


# --- equal terms -------------------------------------------------------------------------------------------------


def optimizer_steps(config: JobConfig) -> int:
    """Optimizer steps of the alignment."""
    settings = config.alignment
    return settings.updates * settings.epochs * settings.prompts_per_update // settings.minibatch_prompts


def clips_per_step(config: JobConfig) -> int:
    """Clips that one optimizer step of the alignment trains on, over all its samples and noise levels."""
    settings, rollout = config.alignment, config.rollout
    frames = rollout.branching.clip_frames if rollout.branching.most else rollout.horizon
    clips = frames // config.diffusion.denoiser.clip_frames
    drawn = settings.diffusion.clips_per_rollout
    clips = min(clips, drawn) if drawn else clips
    return settings.minibatch_prompts * settings.group_size * clips * settings.diffusion.times_per_clip


def fine_tuning(config: JobConfig, own_history: float, seed: int, base: Path) -> JobConfig:
    """The job that trains `base` further on real targets: as many steps and clips as the alignment has.

    A window is as long as the longest rollout in training, and own histories reach over all of it from the start on.

    Args:
        own_history: share of windows that continue the model's own frames.

    Raises:
        UserError: the clips of an optimizer step are no whole number of windows.
    """
    wanted = clips_per_step(config)
    window = config.rollout.horizon // config.diffusion.denoiser.clip_frames
    if wanted % window:
        raise UserError(
            f"{wanted} clips an optimizer step are no whole number of windows of {window} clips",
            where="rollout.horizon",
            remedy="choose it, alignment.minibatch_prompts and alignment.group_size so that they are",
        )
    change = {
        "diffusion.training.start": str(base),
        "diffusion.training.steps": optimizer_steps(config),
        "diffusion.training.windows_per_step": wanted // window,
        "diffusion.training.clips_per_window": window,
        "diffusion.training.own_history": own_history,
        "diffusion.training.own_history_from": 0.0,
        "diffusion.training.own_history_grown": 0.0,
    }
    return changed(config, change, seed)


def _checked(config: JobConfig, out: Path, runs: Sequence[Run]) -> JobConfig:
    """Check what the runs need, if any is missing: a complete experiment needs the base and the store alone.

    Returns:
        The config with absolute paths.
    """
    if config.world_model_kind != "diffusion":
        raise UserError(
            "compares ways to train a diffusion world model further, and this job is about one of kind "
            f"'{config.world_model_kind}'",
            where="world_model_kind",
            remedy="take the profile persistence, or one that extends it",
        )
    job = Preflight("persistence", config, out)
    if not all(_complete(out, run) for run in runs):
        check_ready(job)
        tuned = fine_tuning(job.config, 0.0, config.seed, job.world_model)
        check_ready(Preflight("pretrain", tuned, out, stages=(_WORLD_MODEL,)))
    return job.config


def _check_same(before: Mapping[str, Any], config: JobConfig, where: str) -> Any:
    return check_settings(before, config, where, MAY_CHANGE)


# --- one model ---------------------------------------------------------------------------------------------------


def _result_of(out: Path, run: Run) -> Path:
    """Folder of the run's world model."""
    return out / run.name / (ALIGNED if run.arm == REINFORCED else _WORLD_MODEL)


def _complete(out: Path, run: Run) -> bool:
    folder = _result_of(out, run)
    return folder.is_dir() if run.arm == REINFORCED else (folder / SUMMARY).is_file()


class _Measure:
    """Trains and measures models; what is complete is read."""

    def __init__(self, config: JobConfig, out: Path, quiet: bool) -> None:
        self._config, self._out, self._quiet = config, out, quiet
        self.base = world_model_folder(config)

    @cached_property
    def bench(self) -> Bench:
        """The held-out windows."""
        settings = self._config.evaluation
        return make_bench(self._config, horizon=settings.horizon, episodes=settings.episodes, model=self.base)

    def run(self, run: Run) -> Measured:
        """A run's model on the windows."""
        if not _complete(self._out, run):
            self._train(run)
        return self.model(run.name, _result_of(self._out, run))

    def _train(self, run: Run) -> None:
        folder = self._out / run.name
        if run.arm == REINFORCED:
            run_align(changed(self._config, {}, run.seed), folder, resume=True, quiet=self._quiet)
            return
        job = fine_tuning(self._config, SUPERVISED_ARMS[run.arm], run.seed, self.base)
        run_pretrain(job, folder, _WORLD_MODEL, quiet=self._quiet)

    def model(self, name: str, folder: Path) -> Measured:
        """A world model on the windows; what was measured before is read."""
        path = self._out / f"{name}.npz"
        if path.is_file():
            return load_measured(
                path,
                self._config.evaluation.bootstrap_resamples,
                tuple(window.episode for window in self.bench.windows),
            )
        found = run_rollouts(self.bench, folder, name, keep=_CLIPS, quiet=self._quiet)
        measured = Measured(found.metrics, found.frames)
        save_measured(measured, path)
        return measured


def save_measured(measured: Measured, path: Path) -> None:
    """Write all figures of every view, and the frames."""
    arrays = {"frames": measured.frames}
    for view, curves in (measured.metrics.views or {"": measured.metrics}).items():
        arrays |= {f"{view}/{name}": curves.per_frame[name] for name in FRAME_METRICS}
        arrays |= {f"{view}/{name}": getattr(curves, name) for name in CLIP_METRICS}
    with whole_file(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_measured(path: Path, resamples: int, episodes: tuple[str, ...] = ()) -> Measured:
    """Read what `save_measured` wrote.

    Args:
        episodes: see `MetricCurves`.

    Raises:
        UserError: the file is damaged.
    """
    arrays = read_arrays(path, "figures of held-out windows")
    try:
        frames = arrays.pop("frames")
        views = {
            view: MetricCurves(
                {name: arrays[f"{view}/{name}"] for name in FRAME_METRICS},
                freeze_rate=arrays[f"{view}/freeze_rate"],
                motion=arrays[f"{view}/motion"],
                resamples=resamples,
                episodes=episodes,
            )
            for view in dict.fromkeys(name.rpartition("/")[0] for name in arrays)
        }
        return Measured(MetricCurves.over(views), frames)
    except LookupError as error:
        raise UserError(
            f"cannot be read as figures of held-out windows (no {error})",
            where=str(path),
            remedy="delete it, and the model is measured again",
        ) from error


def _write(path: Path, text: str) -> None:
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
