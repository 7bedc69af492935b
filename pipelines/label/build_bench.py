"""Builds RobotWorldBench: proposals stream through Ray Data, encoded pairs stream into the store.

    Planner ──proposals──► Ray Data tasks ───rows──► Balancer ──► write_pairs ──► store
    (index only)           cut, degrade, label,      quotas,      complete
                           roll out, encode          levels       or absent

Proposals are made in rounds, each for the pairs that are still missing. A pair that cannot be made, or that exceeds the
quota of its score level, is replaced in the next round.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from roboalign_ray.config import JobConfig
from roboalign_ray.config.bench import BenchConfig
from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.store import open_store, resolve_store
from roboalign_ray.episodes.windows import WindowSpec
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.folder_lock import one_writer
from roboalign_ray.foundation.storage.shards import StoreCard, already_exists
from roboalign_ray.foundation.telemetry.progress import Progress
from roboalign_ray.judge.bench.generated import find_generated, generated_pairs
from roboalign_ray.judge.bench.pair_maker import HELD_OUT_FRACTION, PairMaker
from roboalign_ray.judge.bench.plan import FAMILIES, Balancer, Family, Planner, Proposal, quotas
from roboalign_ray.judge.data.pairs import JudgedPair, PairsSummary, encode_pair, write_pairs
from roboalign_ray.judge.rubric import names
from roboalign_ray.pipelines.cluster.runtime import start_ray
from roboalign_ray.pipelines.cluster.weight_folders import tokenizer_folder, world_model_folder
from roboalign_ray.pipelines.preflight.job import Preflight, check_ready
from roboalign_ray.pipelines.train.batch_feed import ordered_dataset

_ROUNDS, _CAPPED_ROUNDS = 8, 5  # the last rounds accept any score level
_SPARE: dict[str, float] = {"real": 1.05, "degraded": 1.1, "counterfactual": 1.3, "rollout": 1.3}
_PROMPTS_PER_BATCH = 8
_PROPOSALS_PER_TASK = 64

Row = dict[str, Any]


@dataclass(frozen=True)
class BenchSource:
    """The inputs of every worker, as plain values that can be sent to it.

    Attributes:
        store: the episode store.
        spec: length, stride and size of a clip.
        config: the bench's config.
        tokenizer, world_model: folders of weights; None makes no rollouts.
        model_name: name of the model in the kind of rollouts.
        held_out_fraction: share of groups held out.
    """

    store: Path
    spec: WindowSpec
    config: BenchConfig
    tokenizer: Path | None = None
    world_model: Path | None = None
    model_name: str = ""
    held_out_fraction: float = HELD_OUT_FRACTION

    def maker(self) -> PairMaker:
        """Open the store and return its pair maker."""
        return PairMaker(
            open_store(self.store), self.spec, self.config, held_out_fraction=self.held_out_fraction
        )


@dataclass
class BuildReport:
    """The result of a build: wanted and missing pairs by family, and pairs that were set aside, by reason."""

    wanted: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    set_aside: Counter[str] = field(default_factory=Counter)


def bench_source(config: JobConfig, *, rollouts: bool = True) -> BenchSource:
    """The job's store, clip length and weights.

    Raises:
        UserError: there is no store, or weights are missing.
    """
    store = resolve_store(config.episodes.store).absolute()
    spec = WindowSpec(config.bench.frames, stride=config.episodes.frame_stride, view=config.episodes.view)
    if not rollouts or config.bench.rollout == 0:
        return BenchSource(store, spec, config.bench, held_out_fraction=config.episodes.held_out_fraction)
    size = config.tokenizer
    return BenchSource(
        store,
        WindowSpec(spec.frames, stride=spec.stride, view=spec.view, height=size.height, width=size.width),
        config.bench,
        tokenizer_folder(config),
        world_model_folder(config),
        "shipped" if config.world_model_weights == "shipped" else Path(config.world_model_weights).name,
        config.episodes.held_out_fraction,
    )


@one_writer
def build_bench(
    config: JobConfig,
    out: Path,
    *,
    rollouts: bool = True,
    generated: Sequence[Path] = (),
    overwrite: bool = False,
    command: str = "",
    quiet: bool = False,
) -> tuple[PairsSummary, BuildReport]:
    """Make the bench of a job and write it to `out`, contact sheets included.

    Args:
        config: the job; its section `bench` gives the number of pairs of each family.
        out: folder of the store; it appears only when all pairs are made.
        rollouts: also make pairs from rollouts of the job's world model.
        generated: folders of generated videos to be scored and added, in addition to the quotas.
        overwrite: replace an existing bench.
        command: the command line, for the card.
        quiet: show no progress on the terminal.

    Raises:
        UserError: bad input, or no pair of any family could be made.
    """
    if out.exists() and not overwrite:
        raise already_exists(out)
    config = check_ready(Preflight("bench", config, rollouts=rollouts))
    source = bench_source(config, rollouts=rollouts)
    maker = source.maker()
    planner = Planner(maker.index(), source.config, source.spec.span)
    available = [name for name in planner.available() if name != "rollout" or source.world_model is not None]
    report = BuildReport(quotas(source.config, available))
    videos = [video for folder in generated for video in find_generated(folder)]
    with start_ray(config.cluster, worker_logs=False):
        rows = _chained(
            map(encode_pair, generated_pairs(videos, maker)), _rows(source, planner, report, quiet)
        )
        summary = write_pairs(
            rows,
            out,
            card=_card(source, command),
            held_out_fraction=config.episodes.held_out_fraction,
            overwrite=overwrite,
        )
    return summary, report


def _chained(*parts: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for part in parts:
        yield from part


def _rows(source: BenchSource, planner: Planner, report: BuildReport, quiet: bool) -> Iterator[Row]:
    balancer = Balancer(report.wanted, source.config.level_cap)
    total = sum(report.wanted.values())
    with Progress("making judged pairs", total, unit="pair", quiet=quiet) as progress:
        for number in range(_ROUNDS):
            if number == _CAPPED_ROUNDS:
                balancer.lift_cap()
            missing = balancer.missing()
            if not missing:
                break
            for row in _round(source, planner, missing):
                if reason := row.pop("reason"):
                    report.set_aside[reason] += 1
                elif balancer.take(row["kind"].split("/")[0], sum(row["scores"])):
                    yield row
                    progress.advance()
                else:
                    report.set_aside["enough of its kind and score level"] += 1
    report.missing = balancer.missing()
    if report.missing == report.wanted:
        raise UserError(
            f"no pair could be made ({'; '.join(f'{why}: {n}' for why, n in report.set_aside.most_common(3))})",
            where=str(source.store),
        )


def _round(source: BenchSource, planner: Planner, missing: Mapping[str, int]) -> Iterator[Row]:
    proposals: list[Proposal] = []
    prompts: list[Proposal] = []
    for family in FAMILIES:
        if family not in missing:
            continue
        count = math.ceil(_SPARE[family] * missing[family])
        if family == "rollout":
            prompts = planner.propose(family, math.ceil(count / source.config.samples))
        else:
            proposals += planner.propose(family, count)
    if proposals:
        yield from _stream(_by_group(proposals, source), _ClipTask(source))
    if prompts:
        # One actor, so that the model is loaded once; a rollout uses all available threads.
        yield from _stream(_by_combination(prompts), _RolloutTask, source=source)


def _by_group(proposals: Sequence[Proposal], source: BenchSource) -> list[list[Proposal]]:
    """Batches in which proposals of the same episode group are together, so that a task decodes them once."""
    groups = open_store(source.store).group_ids
    gathered: dict[str, list[Proposal]] = {}
    for proposal in proposals:
        gathered.setdefault(groups[proposal.episode], []).append(proposal)
    return _cut(gathered.values(), _PROPOSALS_PER_TASK)


def _by_combination(prompts: Sequence[Proposal]) -> list[list[Proposal]]:
    """Batches of one policy and temperature each, with the combinations interleaved.

    If the last batches are not used, all combinations lose about the same number.
    """
    gathered: dict[tuple[str, float], list[Proposal]] = {}
    for proposal in prompts:
        gathered.setdefault((proposal.name, proposal.strength), []).append(proposal)
    turns = zip_longest(*(_cut([part], _PROMPTS_PER_BATCH) for part in gathered.values()))
    return [batch for turn in turns for batch in turn if batch is not None]


def _cut(parts: Iterable[list[Proposal]], size: int) -> list[list[Proposal]]:
    return [part[first : first + size] for part in parts for first in range(0, len(part), size)]


def _stream(parts: list[list[Proposal]], task: Any, **arguments: Any) -> Iterator[Row]:
    """Yield the rows of all parts as they are made: encoded pairs, or the reason why there is none."""
    rows = [{"proposals": json.dumps([asdict(proposal) for proposal in part])} for part in parts]
    dataset = ordered_dataset(rows)  # ordered, so that every run writes the same store
    if arguments:
        made = dataset.flat_map(task, fn_constructor_kwargs=arguments, concurrency=1, num_cpus=1)
    else:
        made = dataset.flat_map(task, num_cpus=1)
    for row in made.iter_rows():
        yield {**row, "scores": [float(score) for score in row["scores"]]}


class _ClipTask:
    """Makes real, counterfactual and degraded pairs; opens the store once per process."""

    def __init__(self, source: BenchSource) -> None:
        self._source = source

    def __call__(self, row: Mapping[str, Any]) -> list[Row]:
        maker = _opened(self._source)
        return [_encoded(maker.pair(proposal)) for proposal in _parsed(row)]


class _RolloutTask:
    """Makes pairs from rollouts, in an actor that holds the model."""

    def __init__(self, source: BenchSource) -> None:
        from roboalign_ray.judge.bench.rollouts import RolloutMaker
        from roboalign_ray.world_model.registry import open_world_model

        assert source.world_model is not None
        opened = partial(open_world_model, source.world_model, tokenizer=source.tokenizer)
        self._rollouts = RolloutMaker(source.maker(), opened, source.model_name)

    def __call__(self, row: Mapping[str, Any]) -> list[Row]:
        return [_encoded(pair) for pair in self._rollouts.pairs(_parsed(row))]


@cache
def _opened(source: BenchSource) -> PairMaker:
    """The pair maker, opened once per process."""
    return source.maker()


def _parsed(row: Mapping[str, Any]) -> list[Proposal]:
    return [Proposal(**values) for values in json.loads(row["proposals"])]


def _encoded(pair: JudgedPair | Failed) -> Row:
    if isinstance(pair, JudgedPair):
        try:
            return encode_pair(pair) | {"reason": ""}
        except EpisodeError as error:
            pair = Failed(error.what, "encode")
    # Ray Data needs the same columns in every row.
    texts = dict.fromkeys(("pair_id", "group_id", "kind", "annotator", "instruction", "provenance"), "")
    empty = {"length": 0, "fps": 0.0, "scores": [0.0] * len(names()), "video": b""}
    return {**texts, **empty, "reason": pair.reason}


def _card(source: BenchSource, command: str) -> StoreCard:
    return StoreCard(
        title="RobotWorldBench",
        summary=(
            "Robot videos with an instruction and six scores in the rubric's points: real clips and simulated "
            "counterfactuals by the simulator's labels, degraded clips by rule, rollouts of a world model by "
            "measurement against their real continuation. All pairs of a start state are in the same split."
        ),
        command=command,
        settings=source.config.public(),
    )


def write_degradation_sheets(source: BenchSource, folder: Path) -> list[Path]:
    """Write a PNG per degradation: one real clip unchanged, and degraded at every strength of the config.

    Raises:
        UserError: no episode is long enough.
    """
    import numpy as np

    from roboalign_ray.judge.bench.degradation_table import TABLE
    from roboalign_ray.judge.bench.sheets import contact_sheet

    maker = source.maker()
    planner = Planner(maker.index(), source.config, source.spec.span)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    family: Family = "real"
    for degradation in TABLE:
        for proposal in planner.propose(family, 8):
            clip = maker.source(proposal.episode, proposal.start)
            rng = np.random.default_rng(source.config.seed)
            material = maker.material(clip, rng, degradation.needs)
            if not degradation.possible(material):
                continue
            frames, instruction = clip.window.frames, clip.window.instruction
            rows = [(f"{clip.window.episode_id}: {instruction}", frames)]
            for strength in source.config.strengths:
                rng = np.random.default_rng([source.config.seed, 1])
                degraded = degradation.rule(frames, strength, rng, material)
                lost = np.array(degradation.lost) * (strength if degradation.graded else 1)
                other = material.other_instruction
                asked = f" instruction: {other}" if other else ""
                caption = (
                    f"{degradation.name} {strength:g}: lost {', '.join(f'{x:.2f}' for x in lost)}{asked}"
                )
                rows.append((caption, degraded))
            contact_sheet(rows, folder / f"{degradation.name}.png")
            written.append(folder / f"{degradation.name}.png")
            break
    return written
