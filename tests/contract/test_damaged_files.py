"""Every file that we write, damaged in every common way: read right or refused in one line, cheaply."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corruption import damaged_file, measured
from made_episodes import made_episodes
from made_groups import make_group
from made_pairs import made_pairs
from tiny_job import make_tiny_job
from tiny_student import tiny_student

from roboalign_ray.alignment.records.group_files import load_group, save_group
from roboalign_ray.alignment.records.journal import read_journal
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_check import check_cards
from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.episodes.inspect import store_figures
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage import checkpoints
from roboalign_ray.foundation.telemetry.chrome_trace import read_trace
from roboalign_ray.foundation.telemetry.metrics import JSONL, read_curves
from roboalign_ray.judge.bench.generated import find_generated
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import open_pairs, write_pairs
from roboalign_ray.judge.student.model import Student
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.token.transformer import load_pretrained

JOURNAL_LINE = {
    "update": 5,
    "group": 9,
    "prompt": "toy/01@3",
    "seeds": [11, 12],
    "versions": [4, 5],
    "scores": [{"total": 0.5, "ssim": 0.75, "scorer_version": 2}, {"failed": "no frame", "kind": "decode"}],
    "together": [8, 9],
}
MOST_SECONDS, MOST_MEGABYTES = 5.0, 512.0


@dataclass(frozen=True)
class Kind:
    """A thing on disk: how to write it into a folder, and how to read all of it."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _read_store(folder: Path) -> Any:
    store = open_store(folder)
    store_figures(store)
    held = store.split("held_out"), store.successes(), list(store.actions(range(len(store))))
    if len(store.statistics["actions"]) == 1:
        action_card_of(store).strided(2)
    return held, [_or_refused(lambda number=number: store.read(number)) for number in range(len(store))]


def _read_pairs(folder: Path) -> Any:
    pairs = open_pairs(folder)
    return pairs.split("held_out"), [_or_refused(lambda n=n: pairs.read(n)) for n in range(0, len(pairs), 10)]


def _or_refused(read: Callable[[], Any]) -> Any:
    """A damaged row is refused by itself; the rest can be read."""
    try:
        return read()
    except UserError:
        return None


def _write_labels(folder: Path) -> None:
    DistillationSet(folder).append(1, list(made_pairs(4)))


def _read_labels(folder: Path) -> Any:
    labels = DistillationSet(folder)
    return [_or_refused(lambda n=n: labels.read(n)) for n in range(len(labels))]


def _write_checkpoint(folder: Path) -> None:
    def files(draft: Path) -> None:
        (draft / "state.bin").write_bytes(b"weights" * 50)

    checkpoints.save(folder, 3, files, metadata={"run": "a"})


def _write_models(folder: Path) -> None:
    make_tiny_job(folder)
    shutil.rmtree(folder / "store")


def _read_models(folder: Path) -> Any:
    world_model = folder / "world_model"
    return (
        DualBranchTokenizer.load(folder / "tokenizer"),
        ActionBinner.load(world_model),
        ActionCard.load(world_model),
        load_pretrained(world_model),
    )


def _write_lines(name: str, entries: list[dict[str, Any]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    return write


def _write_group(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_group(folder / "group.npz", make_group(0))


def _write_profile(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text("extends: demo\nseed: &s 3\njudge: {seed: *s}\n")


def _write_sidecars(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.mp4").write_bytes(b"")
    (folder / "a.json").write_text(json.dumps({"episode_id": "x", "start": 1, "method": "m"}))


def _write_trace(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trace.json").write_text(
        '[\n{"name": "a", "ph": "X", "ts": 1},\n{"name": "b", "ph": "X", "ts": 2}\n]'
    )


def _read_trace(folder: Path) -> Any:
    try:
        return read_trace(folder / "trace.json")
    except ValueError:  # what its docstring promises
        return None


def _write_card(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_store(made_episodes(1, 3, 1, length=6, size=16), folder / "store")
    action_card_of(open_store(folder / "store")).save(folder)
    shutil.rmtree(folder / "store")
    path = folder / "action_card.json"
    told = json.loads(path.read_text())
    del told["hash"]  # without it most of the damage reaches the fields
    path.write_text(json.dumps(told))


def _read_card(folder: Path) -> Any:
    card = ActionCard.load(folder)
    assert card is not None
    check = check_cards(card, card.model_copy(update={"names": ("other",) * card.dims}))
    return (
        card.line(),
        card.limits(),
        card.as_json(),
        [found.what for found in check.differences],
        check.notes,
    )


KINDS = {
    "episode store": Kind(
        lambda folder: write_store(made_episodes(1, 3, 2, length=6, size=16), folder, held_out_fraction=0.4),
        _read_store,
    ),
    "action card": Kind(_write_card, _read_card),
    "judged pairs": Kind(lambda folder: write_pairs(made_pairs(20), folder), _read_pairs),
    "labels": Kind(_write_labels, _read_labels),
    "checkpoint": Kind(_write_checkpoint, lambda folder: checkpoints.load(folder / "step-00000003")),
    "scored group": Kind(_write_group, lambda folder: load_group(folder / "group.npz")),
    "journal": Kind(
        _write_lines("journal.jsonl", [JOURNAL_LINE, JOURNAL_LINE | {"group": 10}]),
        lambda folder: read_journal(folder / "journal.jsonl"),
    ),
    "curves": Kind(_write_lines(JSONL, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]), read_curves),
    "trace": Kind(_write_trace, _read_trace),
    "tokenizer and world model": Kind(_write_models, _read_models),
    "student": Kind(lambda folder: tiny_student().save(folder), Student.load),
    "profile": Kind(_write_profile, lambda folder: load_job(str(folder / "mine.yaml"))),
    "description of a video": Kind(_write_sidecars, find_generated),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for name, kind in KINDS.items():
        kind.write(root / name)
    return root


@pytest.mark.parametrize("name", KINDS)
def test_what_is_whole_is_read(name: str, whole: Path) -> None:
    assert KINDS[name].read(whole / name) is not None


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused_in_one_line(name: str, whole: Path, tmp_path: Path) -> None:
    _spoil(name, whole, tmp_path, count=30)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_much_damage_is_refused_in_one_line(name: str, whole: Path, tmp_path: Path) -> None:
    print(name, dict(_spoil(name, whole, tmp_path, count=200)))


def _spoil(name: str, whole: Path, tmp_path: Path, count: int) -> Counter[str]:
    kind, outcomes = KINDS[name], Counter()
    folder = tmp_path / "damaged"
    shutil.copytree(whole / name, folder)
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".md", ".mp4")
    )
    for number in range(count):
        rng = random.Random(f"{name} {number}")
        path = rng.choice(files)
        before = path.read_bytes()
        way, raw = damaged_file(path, rng)
        path.write_bytes(raw)
        cost = measured(lambda: kind.read(folder))
        path.write_bytes(before)
        told = f"{name} {number}: {way} of {path.name}"
        if cost.error is not None:
            assert isinstance(cost.error, UserError), f"{told}: {type(cost.error).__name__}: {cost.error}"
            assert "\n" not in cost.error.line(), told
        outcomes["refused" if cost.error else "read"] += 1
        assert cost.seconds < MOST_SECONDS, told
        assert cost.megabytes < MOST_MEGABYTES, told
    return outcomes


def test_statistics_that_were_read_are_numbers(whole: Path, tmp_path: Path) -> None:
    """Percentiles of another length or type are refused when the store is opened, not when a worker bins actions."""
    folder = tmp_path / "store"
    shutil.copytree(whole / "episode store", folder)
    path = folder / "statistics.json"
    told = json.loads(path.read_text())
    for value in ("abc", ["a"], [float("nan")], None):
        dims = next(iter(told["actions"]))
        changed = {**told, "actions": {dims: {**told["actions"][dims], "p01": value}}}
        path.write_text(json.dumps(changed))
        if value is None:
            open_store(folder)
            continue
        with pytest.raises(UserError, match=rf"actions\.{dims}\.p01"):
            open_store(folder)


def test_a_store_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    write_store(made_episodes(1, 4, 1, length=6, size=16), tmp_path / "s", shard_episodes=2)
    next((tmp_path / "s").glob("shard-*.parquet")).unlink()
    with pytest.raises(UserError, match="holds 2 of 4 episodes"):
        open_store(tmp_path / "s")


def test_a_config_that_asks_for_any_size_takes_no_memory(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(whole / "student", folder)
    path = folder / "student.json"
    told = json.loads(path.read_text())
    told["config"]["hidden"] = 2**15
    path.write_text(json.dumps(told))
    cost = measured(lambda: Student.load(folder))
    assert isinstance(cost.error, UserError)
    assert cost.megabytes < 100


def test_random_numbers_are_not_needed() -> None:
    """The damage follows from the number alone."""
    path = Path(__file__)
    assert damaged_file(path, random.Random("a")) == damaged_file(path, random.Random("a"))
    assert np.unique([len(damaged_file(path, random.Random(n))[1]) for n in range(20)]).size > 3
