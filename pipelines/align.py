"""The alignment job: actors up, the loop, held-out curves, checkpoints, the aligned model.

out/
  logs/align/          metrics.jsonl and TensorBoard events
  rollouts.jsonl       one line per group: prompt, seeds, versions, scores
  checkpoints/         complete checkpoints: model, optimizer, version
  aligned/             the result, a plain Hugging Face directory
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.align_loop import Update, updates
from pipelines.align_stages import Crew, Weights, publish, rollout_and_score
from pipelines.runtime import role_threads, spawn, start_ray, stop, wait
from pipelines.weights import tokenizer_folder, world_model_folder
from roboalign_ray.alignment.batch import check_trainable
from roboalign_ray.alignment.prompts import PromptSchedule, schedule_from_store
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation import checkpoints
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.progress import Progress
from roboalign_ray.foundation.telemetry import MetricsWriter, read_curves

JOURNAL, ALIGNED, LOGS, CHECKPOINTS = "rollouts.jsonl", "aligned", "logs/align", "checkpoints"
_HELD_OUT = -1  # the "update" that names the held-out prompts' seeds
_CHECKPOINTS_KEPT = 2
_MAY_DIFFER = {"name", "output", "cluster", "evaluation"}  # between a run and the one that resumes it


@dataclass(frozen=True)
class AlignResult:
    """What came of a job.

    Attributes:
        model: folder of the aligned world model.
        logs: folder of its telemetry.
        curves: name -> (updates int64 [N], values float64 [N]); "held_out/…" are those of held-out prompts.
        counts: groups, samples and failures over the whole run.
    """

    model: Path
    logs: Path
    curves: dict[str, tuple[Any, Any]] = field(repr=False)
    counts: dict[str, int]


def run_align(config: JobConfig, out: Path, *, resume: bool = False, quiet: bool = False) -> AlignResult:
    """Align the configured world model with GRPO.

    Args:
        config: the job.
        out: run directory.
        resume: continue from the last complete checkpoint in `out`; without one, start.
        quiet: no progress on the terminal.

    Raises:
        UserError: settings that cannot be trained with, missing weights or store, or `out` holds another run.
        RoleFailure: workers were lost for good, or a deadline passed.
    """
    check_trainable(config.rollout)
    if config.asynchrony.staleness > 0:
        raise UserError(
            f"the alignment loop is synchronous, it cannot be {config.asynchrony.staleness} versions stale",
            where="asynchrony.staleness",
            remedy="set it to 0; 'roboalign simulate' predicts what more would bring",
        )
    out = out.absolute()
    begun = checkpoints.latest(out / CHECKPOINTS)
    if not resume and ((out / ALIGNED).exists() or begun is not None):
        raise UserError(
            "holds an alignment run already", where=str(out), remedy="add --resume, or choose another"
        )
    tokenizer_folder(config), world_model_folder(config)  # what is missing is told now, before Ray starts
    # Checked before any process is started: a damaged checkpoint is told at once.
    found = checkpoints.load(begun) if resume and begun is not None else None
    if found is not None:
        _check_same_job(found.metadata["config"], config, str(found.folder))
    schedule = schedule_from_store(config.episodes, config.rollout.horizon, config.seed)
    with start_ray(config.cluster, worker_logs=False), crew_of(config) as crew:
        job = _Job(config, out, crew, schedule)
        return job.run(found, quiet=quiet)


@contextmanager
def crew_of(config: JobConfig) -> Iterator[Crew]:
    """The job's actors, everything loaded; ended with the block."""
    from actors.learner import LearnerActor
    from actors.rollout import RolloutActor
    from actors.scorer import ScorerActor

    tokenizer, model, cluster = tokenizer_folder(config), world_model_folder(config), config.cluster
    rollout = {
        "tokenizer": tokenizer,
        "world_model": model,
        "rollout": config.rollout,
        "episodes": config.episodes,
        "threads": role_threads(cluster.rollout),
    }
    scorer = {
        "tokenizer": tokenizer,
        "reward": config.reward,
        "episodes": config.episodes,
        "threads": role_threads(cluster.scorer),
    }
    ranks = cluster.learner.workers
    learners = [
        {
            "world_model": model,
            "config": config.alignment,
            "rank": rank,
            "ranks": ranks,
            "threads": role_threads(cluster.learner),
        }
        for rank in range(ranks)
    ]
    crew = Crew(
        spawn(RolloutActor, cluster.rollout, [rollout] * cluster.rollout.workers),
        spawn(ScorerActor, cluster.scorer, [scorer] * cluster.scorer.workers),
        spawn(LearnerActor, cluster.learner, learners),
        cluster,
    )
    try:
        _get_ready(crew)
        yield crew
    finally:
        stop([*crew.rollouts, *crew.scorers, *crew.learners])


def _get_ready(crew: Crew) -> None:
    """Load all roles at once; their loading times overlap."""
    cluster = crew.cluster
    [address] = wait([crew.learners[0].address.remote()], cluster.learner.deadline_s, "learner start")
    joining = [learner.join.remote(address) for learner in crew.learners]
    loading = [actor.ready.remote() for actor in crew.rollouts]
    scoring = [actor.ready.remote() for actor in crew.scorers]
    wait(loading, cluster.rollout.deadline_s, "rollout start")
    wait(scoring, cluster.scorer.deadline_s, "scorer start")
    wait(joining, cluster.learner.deadline_s, "learner start")


class _Job:
    """One run: the loop's surroundings."""

    def __init__(self, config: JobConfig, out: Path, crew: Crew, schedule: PromptSchedule) -> None:
        self.config, self.out, self.crew, self.schedule = config, out, crew, schedule
        self.counts = {
            "groups": 0,
            "samples": 0,
            "failed_samples": 0,
            "failed_groups": 0,
            "dropped_groups": 0,
        }

    def run(self, found: checkpoints.Checkpoint | None, *, quiet: bool) -> AlignResult:
        weights = self._resume(found) if found else Weights()
        total, first = self.config.alignment.updates, weights.version
        progress = Progress("align", total=total - first, unit="update", console=_console(quiet))
        # A resumed run writes its first update again; the evaluation at the checkpoint is kept.
        with MetricsWriter(self.out / LOGS, resume_at=first + 1) as writer, progress:
            if first == 0:
                writer.scalars(0, self._held_out(weights))
            for update in updates(self.crew, self.schedule, self.config.alignment, weights):
                weights = update.weights
                scalars = self._observe(update)
                if weights.version % self.config.alignment.evaluate_every == 0 or weights.version == total:
                    scalars |= self._held_out(weights)
                    self._checkpoint(weights.version)
                writer.scalars(weights.version, scalars)
                progress.advance(1, **_figures(scalars))
        self._save_result()
        return AlignResult(
            self.out / ALIGNED, self.out / LOGS, read_curves(self.out / LOGS), dict(self.counts)
        )

    def _observe(self, update: Update) -> dict[str, float]:
        """Journal and counts of an update; its scalars."""
        _journal(self.out / JOURNAL, update)
        self.counts["groups"] += len(update.batch.records)
        self.counts["failed_groups"] += len(update.batch.failed)
        for name in ("samples", "failed_samples", "dropped_groups"):
            self.counts[name] += int(update.scalars[name])
        return dict(update.scalars)

    def _held_out(self, weights: Weights) -> dict[str, float]:
        """Rewards on held-out prompts with the same seeds every time."""
        settings = self.config.alignment
        names = self.schedule.held_out(settings.held_out_prompts)
        seeds = self.schedule.seeds(_HELD_OUT, len(names), settings.held_out_samples)
        batch = rollout_and_score(self.crew, names, seeds, weights)
        kept = ("reward_", "failed_", "samples")
        return {f"held_out/{name}": value for name, value in batch.scalars.items() if name.startswith(kept)}

    def _resume(self, found: checkpoints.Checkpoint) -> Weights:
        """Learner, counts and journal as they were at the checkpoint."""
        self.counts.update(found.metadata["counts"])
        _cut_journal(self.out / JOURNAL, found.step)
        deadline = self.crew.cluster.learner.deadline_s
        loads = [learner.load_state.remote(found.folder / "state") for learner in self.crew.learners]
        wait(loads, deadline, "resume")
        return publish(self.crew)

    def _save_result(self) -> None:
        """The last checkpoint's model under its final name: there completely, or not at all."""
        last = checkpoints.latest(self.out / CHECKPOINTS)
        assert last is not None  # the last update is always checkpointed
        staging = self.out / f".{ALIGNED}"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(last / "model", staging)
        shutil.rmtree(self.out / ALIGNED, ignore_errors=True)
        staging.rename(self.out / ALIGNED)

    def _checkpoint(self, version: int) -> None:
        learners, deadline = self.crew.learners, self.crew.cluster.learner.deadline_s

        def write(folder: Path) -> None:
            wait(
                [learner.save_state.remote(folder / "state") for learner in learners], deadline, "checkpoint"
            )
            wait([learner.save.remote(folder / "model") for learner in learners], deadline, "checkpoint")

        metadata = {"version": version, "counts": self.counts, "config": self.config.model_dump(mode="json")}
        checkpoints.save(self.out / CHECKPOINTS, version, write, metadata=metadata, keep=_CHECKPOINTS_KEPT)


def _journal(path: Path, update: Update) -> None:
    """One line per group, those that failed as a whole included."""
    lines = [record.as_json() for record in update.batch.records]
    lines += [
        {"prompt": prompt_id, "failed": failed.reason, "kind": failed.kind}
        for prompt_id, failed in update.batch.failed.items()
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"update": update.index, **line}) + "\n" for line in lines)


def _cut_journal(path: Path, updates_done: int) -> None:
    """Drop what was written after the checkpoint, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["update"] < updates_done:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    path.write_text("".join(kept), encoding="utf-8")


def _check_same_job(before: Mapping[str, Any], config: JobConfig, where: str) -> None:
    """A run goes on with the settings that it began with; only its length may change."""
    now = config.model_dump(mode="json")
    for section in now.keys() - _MAY_DIFFER:
        old, new = before.get(section), now[section]
        if isinstance(old, dict) and section == "alignment":
            old, new = ({k: v for k, v in part.items() if k != "updates"} for part in (old, new))
        if old != new:
            raise UserError(
                f"the run began with other settings in '{section}'",
                where=where,
                remedy="resume with the same ones, or start in another folder",
            )


def _figures(scalars: Mapping[str, float]) -> dict[str, float]:
    shown = {"reward": "reward_mean", "held out": "held_out/reward_mean", "kl": "reference_kl"}
    return {label: scalars[name] for label, name in shown.items() if name in scalars}


def _console(quiet: bool) -> Any:
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)
