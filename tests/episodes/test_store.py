"""The store: what goes in comes out, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_episodes import made_episode, made_episodes

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.splits import split_of
from roboalign_ray.episodes.store import EpisodeStore, open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.shards import StoreCard


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path = tmp_path_factory.mktemp("stores") / "made"
    write_store(made_episodes(), path, shard_episodes=10, card=StoreCard("Made", command="make made"))
    return open_store(path)


def test_episodes_come_back_in_order(store: EpisodeStore) -> None:
    wanted = list(made_episodes())
    assert store.ids == [episode.episode_id for episode in wanted]
    assert len(store) == len(wanted) == 48
    assert len(store.shards) == 5


def test_every_field_comes_back(store: EpisodeStore) -> None:
    wanted = made_episode(3, 4, 1)
    read = store.read("made/task3/4/v1")
    same = ("group_id", "instruction", "fps", "embodiment", "action_names", "action_kinds", "provenance")
    for name in same:
        assert getattr(read, name) == getattr(wanted, name), name
    assert np.array_equal(read.actions, wanted.actions)
    assert np.array_equal(read.state, wanted.state)
    assert read.outcome.success is True
    assert np.array_equal(read.outcome.success_per_frame, wanted.outcome.success_per_frame)
    assert set(read.outcome.privileged) == set(wanted.outcome.privileged)
    for name, values in wanted.outcome.privileged.items():
        assert read.outcome.privileged[name].dtype == values.dtype
        assert np.array_equal(read.outcome.privileged[name], values)
    assert np.abs(read.view().astype(int) - wanted.view()).max() <= 3


def test_what_is_not_known_stays_unknown(tmp_path: Path) -> None:
    episode = replace(made_episode(0, 0), state=None, outcome=type(made_episode(0, 0).outcome)())
    write_store([episode], tmp_path / "s")
    read = open_store(tmp_path / "s").read(0)
    assert read.state is None
    assert read.outcome.success is None
    assert read.outcome.success_per_frame is None
    assert read.outcome.privileged == {}


def test_percentiles_are_those_of_the_train_split_alone(store: EpisodeStore) -> None:
    train = [e.actions for e in made_episodes() if split_of(e.group_id, 0.1) == "train"]
    figures = store.statistics["actions"]["3"]
    rows = np.concatenate(train).astype(np.float64)
    assert figures["frames"] == len(rows)
    np.testing.assert_allclose(figures["p01"], np.percentile(rows, 1, axis=0))
    np.testing.assert_allclose(figures["p99"], np.percentile(rows, 99, axis=0))
    np.testing.assert_allclose(figures["mean"], rows.mean(0))
    np.testing.assert_allclose(figures["std"], rows.std(0))
    assert store.statistics["sources"] == {f"made/task{task}": 12 for task in range(4)}
    assert store.statistics["length"] == {"min": 20, "max": 20, "mean": 20.0}


def test_splits_are_disjoint_complete_and_never_through_a_group(store: EpisodeStore) -> None:
    train, held_out = store.split("train", 0.3), store.split("held_out", 0.3)
    assert sorted(train + held_out) == list(range(len(store)))
    assert train
    assert held_out
    assert not {store.group_ids[n] for n in train} & {store.group_ids[n] for n in held_out}


def test_actions_are_read_without_video(store: EpisodeStore) -> None:
    numbers = [5, 30, 31]
    read = list(store.actions(numbers))
    for number, (actions, names, kinds) in zip(numbers, read, strict=True):
        assert np.array_equal(actions, store.read(number).actions)
        assert kinds == ("delta", "delta", "hold")
        assert names[0] == "delta_x [m]"


def test_the_card_tells_counts_and_the_command(store: EpisodeStore) -> None:
    card = (store.path / "README.md").read_text()
    assert "# Made" in card
    assert "| episodes | 48 (0 quarantined) |" in card
    assert "    make made" in card


def test_shards_are_plain_parquet(store: EpisodeStore) -> None:
    table = pq.read_table(store.shards[0])
    assert table.num_rows == 10
    assert table["actions"][0].as_py() == made_episode(0, 0).actions.tolist()


def test_bad_episodes_are_listed_with_their_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    unserialisable = replace(made_episode(0, 1), provenance={"a": {1, 2}})
    items = [
        made_episode(0, 0),
        Quarantined("made/bad", "video is truncated"),
        unserialisable,
        made_episode(0, 2),
    ]
    summary = write_store(items, tmp_path / "s")
    assert summary.episodes == 2
    assert [item.episode_id for item in summary.quarantined] == ["made/bad", "made/task0/1/v0"]
    listed = json.loads((tmp_path / "s" / "quarantine.json").read_text())
    assert listed[0] == {"episode_id": "made/bad", "reason": "video is truncated"}
    assert "not JSON" in listed[1]["reason"]
    assert open_store(tmp_path / "s").statistics["quarantined"] == 2


def test_nothing_is_left_of_a_store_that_was_not_finished(tmp_path: Path) -> None:
    def source() -> Iterator[Episode]:
        yield from made_episodes(tasks=1, starts=3)
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="power"):
        write_store(source(), tmp_path / "s", shard_episodes=1)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_replacement_leaves_the_old_store(tmp_path: Path) -> None:
    write_store([made_episode(0, 0)], tmp_path / "s")

    def source() -> Iterator[Episode]:
        yield made_episode(0, 1)
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="power"):
        write_store(source(), tmp_path / "s", overwrite=True)
    assert open_store(tmp_path / "s").ids == ["made/task0/0/v0"]
    write_store([made_episode(0, 1)], tmp_path / "s", overwrite=True)
    assert open_store(tmp_path / "s").ids == ["made/task0/1/v0"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_existing_places_are_not_overwritten(tmp_path: Path) -> None:
    write_store([made_episode(0, 0)], tmp_path / "s")
    with pytest.raises(UserError, match="already exists"):
        write_store([made_episode(0, 1)], tmp_path / "s")
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("dear diary")
    with pytest.raises(UserError, match="not an episode store"):
        write_store([made_episode(0, 1)], tmp_path / "diary", overwrite=True)
    assert (tmp_path / "diary" / "monday.txt").exists()


def test_two_episodes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two episodes named"):
        write_store([made_episode(0, 0), made_episode(0, 0)], tmp_path / "s")


def test_a_store_of_nothing_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 quarantined; the first: no video"):
        write_store([Quarantined("a", "no video")], tmp_path / "s")


def test_places_without_a_store_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no episode store here"):
        open_store(tmp_path)
    write_store([made_episode(0, 0)], tmp_path / "s")
    statistics = tmp_path / "s" / "statistics.json"
    statistics.write_text(json.dumps(json.loads(statistics.read_text()) | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        open_store(tmp_path / "s")


def test_broken_shards_are_named(tmp_path: Path) -> None:
    write_store([made_episode(0, 0)], tmp_path / "s")
    (tmp_path / "s" / "shard-00000.parquet").write_bytes(b"nothing of use")
    with pytest.raises(UserError, match=r"shard-00000\.parquet: Parquet file cannot be read"):
        open_store(tmp_path / "s")


def test_unknown_episodes_are_told(store: EpisodeStore) -> None:
    for which in ("made/none", 48, -1):
        with pytest.raises(UserError, match="no episode"):
            store.read(which)
