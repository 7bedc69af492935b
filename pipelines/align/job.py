"""The alignment job: starts the actors, runs the loop, evaluates, writes checkpoints and the aligned model.

out/
  logs/align/          metrics.jsonl and TensorBoard events
  logs/trace.json      every worker's calls with their times: a Chrome trace
  rollouts.jsonl       one line per group: prompt, seeds, versions, scores
  run.json             the run's id, which its checkpoints store
  checkpoints/         complete checkpoints; a run that --resume continues from them gives the same result
  judge/               if a student rewards: its versions, the teacher's labels, and events.jsonl
  aligned/             the result, a world model's folder; provenance.json and profile.yaml describe its origin
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.config import JobConfig
from roboalign_ray.config.loading import dump_shareable
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.run_record import ModelReference, describe, this_command, write_record
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.files import complete_or_absent
from roboalign_ray.foundation.storage.folder_lock import one_job
from roboalign_ray.foundation.telemetry.metrics import MetricsWriter, read_curves
from roboalign_ray.foundation.telemetry.tracking import check_tracking
from roboalign_ray.pipelines.align.fork import begin_fork, open_parent
from roboalign_ray.pipelines.align.journal_files import (
    WRITTEN_AFTER,
    cut_journal,
    write_events,
    write_journal,
)
from roboalign_ray.pipelines.align.launch import JUDGE, crew_of, replace_learner
from roboalign_ray.pipelines.align.learner import Weights
from roboalign_ray.pipelines.align.loop import AlignmentLoop, Crew, Interrupted, Stopped, Update
from roboalign_ray.pipelines.align.run_checkpoints import PARENT, RUN, RunCheckpoints
from roboalign_ray.pipelines.align.run_state import COUNTED, restore, save
from roboalign_ray.pipelines.align.settings_check import check_same_job, keep_settings, note_changes
from roboalign_ray.pipelines.cluster.runtime import start_ray
from roboalign_ray.pipelines.cluster.signals import handled, interrupt
from roboalign_ray.pipelines.cluster.weight_folders import tokenizer_folder, world_model_folder
from roboalign_ray.pipelines.cluster.worker_pool import RoleLost
from roboalign_ray.pipelines.monitor.monitor import Watch
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.scheduling.prompt_schedule import PromptSchedule, schedule_from_store
from roboalign_ray.world_model.registry import read_description, write_description

JOURNAL, ALIGNED, LOGS, CHECKPOINTS = "rollouts.jsonl", "aligned", "logs/align", "checkpoints"
EVENTS = f"{JUDGE}/events.jsonl"


@dataclass(frozen=True)
class AlignResult:
    """Result of a job.

    Attributes:
        model: folder of the aligned world model.
        logs: folder of its telemetry.
        curves: name -> (updates int64 [N], values float64 [N]); names of held-out curves begin with "held_out/".
        counts: groups, samples and failures over the whole run.
    """

    model: Path
    logs: Path
    curves: dict[str, tuple[Any, Any]] = field(repr=False)
    counts: dict[str, int]


@one_job
def run_align(
    config: JobConfig,
    out: Path,
    *,
    resume: bool = False,
    fork: Path | None = None,
    quiet: bool = False,
    beside: Callable[[Crew], AbstractContextManager[None]] | None = None,
) -> AlignResult:
    """Align the configured world model with the configured objective.

    Args:
        config: the job.
        out: run directory.
        resume: continue from the last complete checkpoint in `out`, or at `alignment.checkpoints` if that one is newer;
            without a checkpoint, start.
        fork: begin from this checkpoint of another run, or from the run's newest checkpoint; see `begin_fork`.
        quiet: show no progress.
        beside: a context around all of the crew's work, for observers.

    Raises:
        UserError: settings that cannot be trained with, missing weights or store, `out` holds another run, or there is
            no checkpoint to begin from.
        RoleFailure: workers were lost for good, or a deadline passed.
        KeyboardInterrupt: the job was interrupted, and has written a checkpoint.
    """
    if resume and fork is not None:
        raise UserError(
            "--fork begins a run, and --resume continues one", where="align", remedy="leave one out"
        )
    out = out.absolute()
    build_objective(config.alignment, config.asynchrony.off_policy).check(config)
    kept = RunCheckpoints(out / CHECKPOINTS, config.alignment.checkpoints)
    if not resume and ((out / ALIGNED).exists() or kept.begun()):
        raise UserError(
            "holds an alignment run already", where=str(out), remedy="add --resume, or choose another"
        )
    config = check_ready(Preflight("align", config, out))
    check_tracking(config.telemetry.wandb)
    # Checked before any process is started, so that a damaged checkpoint is reported at once.
    parent = open_parent(fork, config) if fork is not None else None
    found = kept.load(copies=True) if resume else None
    if found is not None:
        note_changes(check_same_job(found.metadata.get("config"), config, str(found.folder)))
    elif config.reward.needs_judge:
        # Students and labels of an attempt that ended before its first checkpoint are kept.
        judge = out / JUDGE
        made = [*judge.glob("versions/step-*"), *judge.glob("labels/*.parquet")]
        keep_settings(judge, config, check_same_job, made)
    schedule = schedule_from_store(config.episodes, config.rollout, config.seed)
    if parent is not None:
        found = begin_fork(parent, config, schedule, kept)
    else:
        kept.keep_id(found)
    with (
        start_ray(config.cluster, worker_logs=False, metrics_port=config.telemetry.metrics_port),
        crew_of(config, out) as crew,
        Watch(config, (out / LOGS).parent, out / LOGS, crew.workforce, quiet=quiet) as watch,
        beside(crew) if beside else nullcontext(),
        interruptions() as stopped,  # entered last, because Ray sets its own signal handlers
    ):
        return _Job(config, out, crew, schedule, stopped, watch, kept).run(found)


@contextmanager
def interruptions() -> Iterator[Stopped]:
    """Whether Ctrl-C was pressed or SIGTERM received in the block. A second signal ends the block at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) > 1:
            interrupt(number, frame)

    with handled(ask):
        try:
            yield lambda: bool(asked)
        except KeyboardInterrupt:
            if asked:
                interrupt(asked[0])
            raise


class _Job:
    """One run, with everything around the loop."""

    def __init__(
        self,
        config: JobConfig,
        out: Path,
        crew: Crew,
        schedule: PromptSchedule,
        stopped: Stopped,
        watch: Watch,
        kept: RunCheckpoints,
    ) -> None:
        self.config, self.out, self.crew, self.schedule = config, out, crew, schedule
        self.stopped, self.watch, self.kept = stopped, watch, kept
        self.counts = dict.fromkeys(COUNTED, 0)
        self._row: dict[str, float] | None = None  # scalars of an update, not written yet

    def run(self, found: checkpoints.Checkpoint | None) -> AlignResult:
        """Run to the last update. A lost learner restarts from the last checkpoint, at most `max_restarts` times."""
        lost = 0
        while True:
            try:
                if lost:
                    replace_learner(self.config, self.crew)
                    found = self.kept.load()
                version = self._run_from(found)
                break
            except RoleLost:
                lost += 1
                if lost > self.config.cluster.learner.max_restarts or self.stopped():
                    raise
        self._save_result(version)
        logs = self.out / LOGS
        return AlignResult(self.out / ALIGNED, logs, read_curves(logs), dict(self.counts))

    def _run_from(self, found: checkpoints.Checkpoint | None) -> int:
        """Run to the last update. Return its number."""
        loop = AlignmentLoop(self.config, self.crew, self.schedule)
        self._resume(found, loop)
        with (
            MetricsWriter(self.out / LOGS, resume_at=self._next_update_row(loop)) as writer,
            self.watch.over(loop),
        ):
            writer.settings(loop.version, dump_shareable(self.config))
            try:
                self._complete(loop, writer)
                for update in loop.updates(self.stopped):
                    self._row = self._observe(update)
                    self._judge(loop, update)
                    self._complete(loop, writer)
            except Interrupted:
                self._leave(loop)
                raise KeyboardInterrupt from None
        return loop.version

    def _resume(self, found: checkpoints.Checkpoint | None, loop: AlignmentLoop) -> None:
        """Restore the checkpoint's state, or the state at the beginning."""
        if found is None:
            self.counts, self._row = dict.fromkeys(COUNTED, 0), {}
            # Workers may hold weights of the lost learner.
            loop.weights = Weights(incarnation=self.crew.learner.incarnation)
            if self.crew.judge is not None:
                self.crew.judge.begin()
        else:
            self.counts, self._row = restore(found, self.crew, loop)
        cut_journal(self.out / JOURNAL, loop.version)
        cut_journal(self.out / EVENTS, self._next_update_row(loop), WRITTEN_AFTER)

    def _next_update_row(self, loop: AlignmentLoop) -> int:
        """The first update whose row is not written: one that waits for its evaluation, or else the next one."""
        return loop.version + (self._row is None)

    def _observe(self, update: Update) -> dict[str, float]:
        """Write an update's groups to the journal and count them. Return the update's scalars."""
        write_journal(self.out / JOURNAL, update)
        self.counts["groups"] += len(update.groups)
        for name in COUNTED[1:]:
            self.counts[name] += int(update.scalars[name])
        return dict(update.scalars)

    def _complete(self, loop: AlignmentLoop, writer: MetricsWriter) -> None:
        """Evaluate and write a checkpoint if they are due. A row that waits for the evaluation is in the checkpoint."""
        if self._row is None:
            return
        settings, version = self.config.alignment, loop.version
        last = version == settings.updates
        if version % settings.evaluate_every == 0 or last:
            with self.watch.span("evaluation", version=version):
                evaluated = loop.evaluate(self.stopped)
            self._row |= evaluated.scalars
            for prompt, video in evaluated.videos.items():
                writer.gif(version, f"held_out/real_generated/{prompt}", video)
        row, self._row = self._row | self._judged(version), None
        writer.scalars(version, row)
        self.watch.scalars(version, row)
        if version and (version % (settings.checkpoint_every or settings.evaluate_every) == 0 or last):
            writer.flush()
            self._checkpoint(loop)

    def _judge(self, loop: AlignmentLoop, update: Update) -> None:
        if self.crew.judge is not None:
            with self.watch.span("judge", version=loop.version):
                loop.judge(update, self.stopped)

    def _judged(self, version: int) -> dict[str, float]:
        """Write the judge's events to its journal, print alarms, and return the figures for the row."""
        judge = self.crew.judge
        if judge is None:
            return {}
        events = judge.take_events()
        write_events(self.out / EVENTS, version, events)
        for event in events:
            if event["event"] in ("alarm", "relabelling failed"):
                self.watch.note(f"judge: {event['event']}: {event['message']}")
        return judge.take_scalars()

    def _leave(self, loop: AlignmentLoop) -> None:
        """Called on interruption: write a checkpoint; if an update cannot end in time, the last checkpoint remains."""
        update = loop.drain(self.config.asynchrony.liveness.grace_s)
        if update is not None:
            self._row = self._observe(update)
            with suppress(Interrupted):
                self._judge(loop, update)
        # With staleness 0, the next update depends on the judge's pending answers, so the update is repeated later.
        waits = self.crew.judge is not None and self.crew.judge.busy and not self.config.asynchrony.staleness
        if not self.crew.learner.busy and not waits:
            self._checkpoint(loop)

    def _checkpoint(self, loop: AlignmentLoop) -> None:
        with self.watch.span("checkpoint", version=loop.version):
            self.kept.save(self._write(loop))

    def _write(self, loop: AlignmentLoop) -> Callable[[Path], Path]:
        return lambda folder: save(folder, self.kept.identity(), loop, self.config, self.counts, self._row)

    def _save_result(self, version: int) -> None:
        """Copy the model of the last update's checkpoint to its final name, completely or not at all.

        Raises:
            UserError: the checkpoint was damaged or replaced meanwhile.
        """
        last = self.kept.of_step(version)
        identity, card = self.kept.identity(), ActionCard.load(last.folder / "model")
        record = describe(
            "align",
            version,
            this_command(),
            run=identity[RUN],
            parent=identity.get(PARENT),
            tokenizer=ModelReference.of(tokenizer_folder(self.config), self.config.tokenizer_weights),
            action_card=card.hash if card else None,
        )
        with complete_or_absent(self.out / ALIGNED) as writing:
            shutil.copytree(last.folder / "model", writing, dirs_exist_ok=True)
            kind = read_description(world_model_folder(self.config)).kind
            write_description(writing, kind, tokenizer_folder(self.config), final=self.out / ALIGNED)
            write_record(writing, record, dump_shareable(self.config))
