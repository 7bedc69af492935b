"""Recomputes an alignment run's groups from its journal and its checkpoints, and compares their scores.

    rollouts.jsonl ─► calls with available weights ─► same prompts, seeds, versions, batches ─► score ─► equal?

On the machine of the run, the scores are equal bit for bit: the groups of a call are rolled out as one batch again,
with as many threads as the job's workers had, and every segment with its original weight version. The available
weights are those that the run began with (version 0) and those of its complete checkpoints. Everything runs in this
process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.alignment.records.journal import (
    Comparison,
    JournalGroup,
    Verdict,
    compare_scores,
    read_journal,
)
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.storage.files import packed_folder
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.foundation.weight_sync.packing import pack, unpack
from roboalign_ray.judge.online.redistillation import VERSIONS
from roboalign_ray.judge.student.registry import StudentRegistry
from roboalign_ray.pipelines.align.groups import Numbering, Ticket
from roboalign_ray.pipelines.align.job import CHECKPOINTS, JOURNAL
from roboalign_ray.pipelines.align.launch import JUDGE
from roboalign_ray.pipelines.align.settings_check import check_same_job
from roboalign_ray.pipelines.cluster.runtime import role_threads
from roboalign_ray.pipelines.cluster.weight_folders import tokenizer_folder, world_model_folder
from roboalign_ray.rewards.group_scorer import choose_best
from roboalign_ray.rewards.registry import build_reward
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.branching import Choose, branched_rollouts
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import Prompt, Rollout, WorldModel
from roboalign_ray.world_model.registry import open_world_model, read_weights

_STATES_KEPT = 4  # weight versions in memory; calls are in the order of updates


@dataclass(frozen=True)
class ReplayResult:
    """Result of a replay.

    Attributes:
        compared: every compared group, in the journal's order.
        tolerance: largest difference that counts as close.
    """

    compared: list[Comparison]
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether at least one group was recomputed, and all recomputed groups are equal."""
        made = [c for c in self.compared if c.verdict is not Verdict.GONE]
        return bool(made) and all(c.verdict is not Verdict.DIFFERS for c in made)

    def rows(self) -> list[dict[str, Any]]:
        """One row per combination of weight versions: the number of groups per verdict, and the largest difference."""
        rows: dict[tuple[int, ...], list[Comparison]] = defaultdict(list)
        for comparison in self.compared:
            rows[comparison.group.versions].append(comparison)
        return [
            {
                "versions": " ".join(map(str, versions)),
                "groups": len(found),
                **{verdict.value: sum(c.verdict is verdict for c in found) for verdict in Verdict},
                "difference": max(
                    (c.difference for c in found if c.difference == c.difference), default=None
                ),
                "why": next((c.why for c in found if c.why), ""),
            }
            for versions, found in sorted(rows.items())
        ]


def run_replay(
    config: JobConfig, run: Path, *, groups: int | None = None, quiet: bool = False
) -> ReplayResult:
    """Recompute a run's groups and compare the scores.

    Args:
        config: the config of the run.
        run: the run's directory.
        groups: stop after this number of groups, in whole calls; None recomputes all that can be recomputed.
        quiet: show no progress.

    Raises:
        UserError: there is no run, its settings are others, or a needed file is missing or damaged.
    """
    journal = read_journal(run / JOURNAL)
    there = checkpoints.complete(run / CHECKPOINTS)
    if there:
        _check_settings(config, checkpoints.load(list(there.values())[-1]))
    maker = _Maker(config, there, run / JUDGE / VERSIONS)
    calls: dict[tuple[tuple[int, ...], tuple[int, ...]], list[JournalGroup]] = defaultdict(list)
    for group in journal:
        calls[group.together, group.versions].append(group)
    can = [key for key, members in calls.items() if not maker.missing(members)]
    compared, made = {}, 0
    with Progress("replay", total=sum(len(calls[key]) for key in can), unit="group", quiet=quiet) as progress:
        for key in can:
            if groups is not None and made >= groups:
                break
            for comparison in maker.compare(key[0], calls[key]):
                compared[comparison.group.group] = comparison
            made += len(calls[key])
            progress.advance(len(calls[key]))
    for members in calls.values():
        if why := maker.missing(members):
            compared |= {group.group: Comparison(group, Verdict.GONE, why=why) for group in members}
    return ReplayResult(
        [compared[g.group] for g in journal if g.group in compared], config.telemetry.tolerance
    )


class _Maker:
    """Recomputes groups.

    Args:
        config: the job.
        there: the run's complete checkpoints by version.
        students: folder of the students that scored, if any.
    """

    def __init__(self, config: JobConfig, there: Mapping[int, Path], students: Path) -> None:
        self.config, self._there, self._students = config, there, StudentRegistry(students)
        self._student = lru_cache(_STATES_KEPT)(self._read_student)
        schedule = schedule_from_store(config.episodes, config.rollout, config.seed)
        settings = config.alignment
        self._numbering = Numbering(schedule, settings.prompts_per_update, settings.group_size)
        self._state = lru_cache(_STATES_KEPT)(self._read_state)

    @cached_property
    def _model(self) -> WorldModel:
        folder, tokenizer = world_model_folder(self.config), tokenizer_folder(self.config)
        return open_world_model(folder, self.config.rollout, tokenizer=tokenizer)

    @cached_property
    def _reader(self) -> PromptReader:
        card = self._model.card
        return PromptReader(self.config.episodes, card.height, card.width, card.views)

    @cached_property
    def _scorer(self) -> ScorerActor:
        threads = role_threads(self.config.cluster.scorer)
        return ScorerActor(
            world_model_folder(self.config),
            self.config.reward,
            self.config.episodes,
            threads,
            tokenizer_folder(self.config),
        )

    def _choose(self) -> Choose | None:
        """As the rollout actor chooses the sample that a shared history goes on with."""
        if not self.config.rollout.branching.chooses:
            return None
        return choose_best(self._model, self._reader, build_reward(self.config.reward))

    def missing(self, members: Sequence[JournalGroup]) -> str:
        """What is missing to recompute a call's groups; empty if nothing is."""
        if self.config.rollout.branching.most and len(set(members[0].versions)) > 1:
            return "weights changed behind a shared history, and the journal does not record its versions"
        gone = [v for group in members for v in group.versions if v and v not in self._there]
        if gone:
            return f"no weights of version {gone[0]}"
        if not self.config.reward.needs_judge:
            return ""
        if not all(group.scorers for group in members):
            return "no sample had a score"
        asked = [v for group in members for v in group.scorers if not self._students.path(v).is_dir()]
        return f"no student of version {asked[0]}" if asked else ""

    def compare(self, together: Sequence[int], members: Sequence[JournalGroup]) -> list[Comparison]:
        """Recompute one call, and compare the scores of its members.

        Args:
            together: numbers of all groups of the call.
            members: those groups whose scores are in the journal.

        Raises:
            UserError: the settings do not give a member's prompt and seeds.
        """
        tickets = [self._numbering.ticket(number, 1) for number in together]
        named = {ticket.number: ticket for ticket in tickets}
        for group in members:
            ticket = named[group.group]
            if (ticket.name.prompt_id, ticket.seeds) != (group.prompt, group.seeds):
                raise UserError(
                    f"group {group.group} has another prompt or other seeds than these settings give it",
                    where=JOURNAL,
                    remedy="replay with the profile, the episodes and the --set values of the run",
                )
        with _threads(role_threads(self.config.cluster.rollout)):
            made = self._roll_out(tickets, members[0].versions)
        with _threads(role_threads(self.config.cluster.scorer)):
            return [self._score(group, made) for group in members]

    def _roll_out(self, tickets: Sequence[Ticket], versions: Sequence[int]) -> dict[int, Rollout]:
        """Groups by number. Prompts that could not be read in the run were left out of its batch, too."""
        prompts: list[Prompt] = []
        readable: list[Ticket] = []
        for ticket in tickets:
            try:
                prompts.append(self._reader.prompt(ticket.name, self.config.rollout.horizon))
                readable.append(ticket)
            except Exception as error:  # the rollout actor also catches all exceptions
                self._unreadable = first_line(error)
        if not prompts:
            return {}
        shared, seeds = [t.name.shared for t in readable], [t.seeds for t in readable]
        if any(shared):
            self._model.load_weights(self._state(versions[0]), versions[0])
            groups = branched_rollouts(self._model, prompts, shared, seeds, choose=self._choose())
        else:
            weights = [(version, self._state(version)) for version in versions]
            groups = self._model.rollout_again(prompts, seeds, weights)
        return {ticket.number: group for ticket, group in zip(readable, groups, strict=True)}

    def _score(self, group: JournalGroup, made: Mapping[int, Rollout]) -> Comparison:
        if group.group not in made:
            return Comparison(group, Verdict.DIFFERS, why=f"its prompt cannot be read ({self._unreadable})")
        students = (
            [self._student(version) for version in group.scorers] if self.config.reward.needs_judge else []
        )
        answer: Any = self._scorer.score([made[group.group]], students)
        [record] = answer[-1]
        return compare_scores(group, record.as_json()["scores"], self.config.telemetry.tolerance)

    def _read_student(self, version: int) -> Mapping[str, bytes]:
        return packed_folder(self._students.path(version))

    def _read_state(self, version: int) -> Mapping[str, Any]:
        """Weights as the rollout workers had them: version 0 from its folder, later ones packed and unpacked."""
        if not version:
            return read_weights(world_model_folder(self.config))
        folder = checkpoints.load(self._there[version]).folder / "model"
        state = read_weights(folder)
        travel = self.config.asynchrony.weights
        return unpack(*pack(state, version, travel))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use as many torch threads as a worker had: they determine the order of sums, and so the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_settings(config: JobConfig, found: checkpoints.Checkpoint) -> None:
    try:
        check_same_job(found.metadata["config"], config, str(found.folder))
    except UserError as error:
        remedy = "replay with the profile and the --set values of the run"
        raise UserError(error.what, where=error.where, remedy=remedy, details=error.details) from error


def print_replay(result: ReplayResult) -> None:
    """Print the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    titles = {"versions": "weights", "groups": "groups", **{v.value: v.value for v in Verdict}}
    for name, title in {**titles, "difference": "largest difference", "why": ""}.items():
        table.add_column(
            title, justify="left" if name in ("versions", "why") else "right", no_wrap=name != "why"
        )
    for row in result.rows():
        difference = "" if row["difference"] is None else f"{row['difference']:.3g}"
        counts = [str(row[name] or "-") for name in ("groups", *(v.value for v in Verdict))]
        table.add_row(row["versions"], *counts, difference, row["why"])
    Console().print(table)
