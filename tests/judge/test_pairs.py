"""The store of judged pairs: what goes in comes out, whole or not at all, and no group is on both sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pairs import made_pair, made_pairs

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.shards import StoreCard
from roboalign_ray.judge.data.pairs import JudgedPair, PairStore, encode_pair, open_pairs, write_pairs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    path = tmp_path_factory.mktemp("pairs") / "made"
    write_pairs(made_pairs(), path, shard_pairs=17, card=StoreCard("Made", command="make made"))
    return open_pairs(path)


def test_pairs_come_back_as_they_were(store: PairStore) -> None:
    assert len(store) == 40
    assert len(store.shards) == 3
    for wanted, read in zip(made_pairs(), store, strict=True):
        for name in ("pair_id", "group_id", "fps", "instruction", "annotator", "kind", "provenance"):
            assert getattr(read, name) == getattr(wanted, name), name
        assert read.scores.tolist() == wanted.scores.tolist()
        assert np.abs(read.frames.astype(int) - wanted.frames).max() <= 3
    assert store.read("made/33").instruction == "do 33"
    assert store.lengths == [4] * 40


def test_scores_come_without_decoding(store: PairStore) -> None:
    assert store.scores.dtype == np.float32
    assert np.array_equal(store.scores, np.stack([pair.scores for pair in made_pairs()]))
    assert store.instructions[7] == "do 7"
    assert store.kinds[7] == "kind1"


@settings(deadline=None)
@given(fraction=st.floats(0.05, 0.95))
def test_no_group_is_on_both_sides(store: PairStore, fraction: float) -> None:
    train, held_out = store.split("train", fraction), store.split("held_out", fraction)
    assert sorted(train + held_out) == list(range(len(store)))
    assert not {store.group_ids[n] for n in train} & {store.group_ids[n] for n in held_out}


def test_rows_made_elsewhere_are_the_same(tmp_path: Path, store: PairStore) -> None:
    write_pairs((encode_pair(pair) for pair in made_pairs()), tmp_path / "rows", shard_pairs=17)
    for ours, theirs in zip(store.shards, sorted((tmp_path / "rows").glob("*.parquet")), strict=True):
        assert pq.read_table(ours).equals(pq.read_table(theirs))


def test_the_card_counts_what_is_there(store: PairStore) -> None:
    figures = json.loads((store.path / "statistics.json").read_text())
    wanted = Counter(f"{pair.scores[0]:g}" for pair in made_pairs())
    assert figures["histograms"]["instruction_following"] == dict(sorted(wanted.items()))
    assert sum(figures["histograms"]["total"].values()) == figures["pairs"] == 40
    assert figures["kinds"] == {"kind0": 14, "kind1": 13, "kind2": 13}
    assert figures["splits"]["held_out"] == len(store.split("held_out"))
    text = (store.path / "README.md").read_text()
    assert "make made" in text
    assert "physics_adherence" in text


def test_nothing_half_written(tmp_path: Path) -> None:
    def breaking() -> Iterator[JudgedPair]:
        yield from made_pairs(20)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_pairs(breaking(), tmp_path / "out", shard_pairs=5)
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_pairs(made_pairs(3), out)
    with pytest.raises(UserError, match="already exists"):
        write_pairs(made_pairs(4), out)
    assert len(open_pairs(out)) == 3
    write_pairs(made_pairs(4), out, overwrite=True)
    assert len(open_pairs(out)) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="is not a store of judged pairs"):
        write_pairs(made_pairs(3), tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"instruction": "  "}, "has no instruction"),
        ({"scores": np.array([3, 2, 1, 1, 1, np.nan])}, "physics_adherence is nan"),
        ({"scores": np.zeros(5)}, "6 dimensions"),
        ({"scores": np.zeros((2, 6))}, "not \\[6\\]"),
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, "frames are"),
        ({"fps": 0.0}, "fps is 0"),
    ],
)
def test_unusable_pairs_are_told(changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=f"pair 'made/1': .*{told}"):
        made_pair(1, **changes)


def test_bad_stores_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no judged pairs here"):
        open_pairs(tmp_path)
    with pytest.raises(UserError, match="no judged pair to write"):
        write_pairs([], tmp_path / "empty")
    with pytest.raises(UserError, match="two pairs named 'made/1'"):
        write_pairs([made_pair(1), made_pair(1)], tmp_path / "twice")
    out = tmp_path / "out"
    write_pairs(made_pairs(3), out)
    with pytest.raises(UserError, match="no pair 3"):
        open_pairs(out).read(3)
    (out / "shard-00000.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"shard-00000.parquet: Parquet file cannot be read"):
        open_pairs(out)
