"""The action card of stores: written, derived from stores of earlier versions, declared, and read with a stride."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_episodes import made_episodes

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.action_card_of_store import action_card_of, fitted_action_card
from roboalign_ray.episodes.declaration import declare_store
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.metaworld_simulator import ACTION_SCALE
from roboalign_ray.episodes.store import EpisodeStore, open_store, write_store
from roboalign_ray.episodes.transforms import stride_episode
from roboalign_ray.foundation.failures import UserError

BOUNDS = ((-0.5, 20.0), None, (0.0, 6.0))
OF_CARDS = ("kinds", "bounds", "rate", "stride", "embodiments")


def written(folder: Path, change: Any = lambda number, episode: episode, **options: Any) -> EpisodeStore:
    episodes = [change(n, episode) for n, episode in enumerate(made_episodes(2, 4, 1))]
    write_store(episodes, folder, held_out_fraction=0.25, **options)
    return open_store(folder)


def as_written_before_cards(folder: Path) -> EpisodeStore:
    """The store without what its statistics state for a card."""
    path = folder / "statistics.json"
    told = json.loads(path.read_text())
    for figures in told["actions"].values():
        for key in OF_CARDS:
            figures.pop(key)
    path.write_text(json.dumps(told))
    return open_store(folder)


def test_a_written_store_states_its_card(tmp_path: Path) -> None:
    card = action_card_of(written(tmp_path / "s", action_bounds=BOUNDS))
    assert card.labels == ("delta_x [m]", "delta_y [m]", "gripper")
    assert card.units == ("m", "m", "")
    assert card.kinds == ("delta", "delta", "hold")
    assert card.bounds == BOUNDS
    assert (card.stride, card.rate, card.embodiments) == (1, 10.0, ("none",))
    assert card.statistics is not None
    assert (card.statistics.min[0], card.statistics.max[0], card.statistics.mean[1]) == (0.0, 19.0, 0.5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_store_of_an_earlier_version_gives_the_same_card_but_for_its_bounds(
    stride: int, tmp_path: Path
) -> None:
    store = written(tmp_path / "s", lambda _, episode: stride_episode(episode, stride), action_bounds=BOUNDS)
    card = action_card_of(store)
    assert (card.stride, card.rate, card.source_rate) == (stride, 10.0 / stride, 10.0)
    before = action_card_of(as_written_before_cards(tmp_path / "s"))
    assert before.bounds == (None,) * 3
    assert before == card.model_copy(update={"bounds": before.bounds})


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda n, e: replace(e, fps=10.0 + n), {"rate": None}),
        (lambda n, e: replace(e, fps=29.97 if n else 30.0), {"rate": 29.97}),
        (lambda n, e: replace(e, embodiment=f"arm{n % 2}"), {"embodiments": ("arm0", "arm1")}),
        (lambda n, e: replace(e, embodiment="" if n == 3 else "arm"), {"embodiments": ()}),
        (lambda n, e: stride_episode(e, 2) if n else e, {"stride": None, "rate": None}),
        (lambda n, e: replace(e, provenance={"stride": "two"}), {"stride": None}),
        (lambda n, e: replace(e, action_names=()), {"names": tuple(f"action[{d}]" for d in range(3))}),
    ],
)
def test_what_episodes_do_not_agree_on_is_not_known(
    change: Any, expected: dict[str, Any], old: bool, tmp_path: Path
) -> None:
    store = written(tmp_path / "s", change)
    card = action_card_of(as_written_before_cards(tmp_path / "s") if old else store)
    assert {name: getattr(card, name) for name in expected} == expected


def test_a_store_of_two_robots_has_a_card_for_each(tmp_path: Path) -> None:
    def wider(number: int, episode: Episode) -> Episode:
        if number % 2:
            return episode
        actions = np.concatenate([episode.actions, episode.actions], axis=1)
        names, kinds = episode.action_names * 2, episode.action_kinds * 2
        return replace(
            episode, actions=actions, action_names=names, action_kinds=kinds, fps=20.0, embodiment="two arms"
        )

    store = written(tmp_path / "s", wider, action_bounds=BOUNDS)
    for opened in (store, as_written_before_cards(tmp_path / "s")):
        one, two = action_card_of(opened, 3), action_card_of(opened, 6)
        assert (one.rate, one.embodiments) == (10.0, ("none",))
        assert (two.rate, two.embodiments, two.bounds) == (20.0, ("two arms",), (None,) * 6)
        for dims in (None, 5):
            with pytest.raises(UserError, match=r"holds actions of \d and of \d dimensions"):
                action_card_of(opened, dims)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_statistics_with_a_stride_are_those_of_motion_summed_by_hand(stride: int, tmp_path: Path) -> None:
    """Action t of an episode is (t, 0.5, its start): sums over whole groups alone, the gripper's last command."""
    store = written(tmp_path / "s", action_bounds=BOUNDS)
    card = fitted_action_card(store, EpisodesConfig(frame_stride=stride, held_out_fraction=0.25))
    train = [store.read(number) for number in store.split("train")]
    rows = []
    for episode in train:
        for start in range(0, 20 - stride + 1, stride):
            numbers = range(start, start + stride)
            rows.append([sum(numbers), 0.5 * stride, int(episode.group_id.rsplit("/", 1)[1])])
    assert card.statistics is not None
    assert card.statistics.frames == len(rows)
    columns = list(zip(*rows, strict=True))
    assert card.statistics.min == tuple(map(min, columns))
    assert card.statistics.max == tuple(map(max, columns))
    assert card.statistics.mean == pytest.approx([sum(column) / len(rows) for column in columns])
    ordered = sorted(columns[0])
    place = 0.99 * (len(ordered) - 1)
    below = int(place)
    above = ordered[min(below + 1, len(ordered) - 1)]
    assert card.statistics.p99[0] == pytest.approx(
        ordered[below] + (place - below) * (above - ordered[below])
    )
    assert card.bounds == ((-0.5 * stride, 20.0 * stride), None, (0.0, 6.0))
    assert (card.stride, card.rate) == (stride, 10.0 / stride)
    if stride == 1:
        assert card == action_card_of(store)


def test_a_stride_over_unknown_kinds_is_refused(tmp_path: Path) -> None:
    store = written(tmp_path / "s", lambda _, e: replace(e, action_names=(), action_kinds=()))
    with pytest.raises(UserError, match="roboalign episodes declare"):
        fitted_action_card(store, EpisodesConfig(frame_stride=2))


@pytest.mark.parametrize("old", [False, True])
def test_declare_writes_the_whole_card(old: bool, tmp_path: Path) -> None:
    store = written(tmp_path / "s", lambda _, e: replace(e, action_kinds=()), action_bounds=BOUNDS)
    before = action_card_of(store)
    if old:
        store = as_written_before_cards(tmp_path / "s")
    declare_store(store, "delta*2,hold", bounds="delta_*=-0.1:0.1,gripper=none")
    card = action_card_of(open_store(tmp_path / "s"))
    assert card.kinds == ("delta", "delta", "hold")
    assert card.bounds == ((-0.1, 0.1), (-0.1, 0.1), None)
    assert (card.rate, card.stride, card.embodiments) == (10.0, 1, ("none",))
    assert card.statistics == before.statistics
    figures = open_store(tmp_path / "s").statistics["actions"]["3"]
    assert set(OF_CARDS) < set(figures)
    declare_store(open_store(tmp_path / "s"), "", bounds="")
    assert action_card_of(open_store(tmp_path / "s")) == card


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("delta_x", "no NAME=LOW:HIGH"),
        ("delta_x=1", "no NAME=LOW:HIGH"),
        ("delta_x=2:1", "LOW <= HIGH"),
        ("delta_x=0:inf", "no NAME=LOW:HIGH"),
        ("delta_x=nan:1", "no NAME=LOW:HIGH"),
        ("delta_x=0:1:2", "no NAME=LOW:HIGH"),
        ("elbow=0:1", "no dimension of the action is named 'elbow'"),
        (",", "declares nothing"),
    ],
)
def test_bounds_that_are_none_are_told(text: str, words: str, tmp_path: Path) -> None:
    store = written(tmp_path / "s")
    before = (tmp_path / "s" / "statistics.json").read_bytes()
    with pytest.raises(UserError, match=words) as caught:
        declare_store(store, "", bounds=text)
    assert caught.value.where == "--action-bounds"
    assert (tmp_path / "s" / "statistics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bounds", [[1, 0], None, None]),
        ("bounds", [None]),
        ("rate", -1),
        ("stride", 0),
        ("embodiments", ["b" * 70_000]),
        ("p01", [9e9, 9e9, 9e9]),
    ],
)
def test_statistics_that_are_no_cards_are_refused_in_one_line(key: str, value: Any, tmp_path: Path) -> None:
    written(tmp_path / "s")
    path = tmp_path / "s" / "statistics.json"
    told = json.loads(path.read_text())
    told["actions"]["3"][key] = value
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"cannot be read as (store statistics|action card)"):
        action_card_of(open_store(tmp_path / "s"))


def test_the_shipped_store_and_world_model_state_what_their_episodes_hold() -> None:
    store = open_store("shipped")
    card = action_card_of(store)
    assert (card.rate, card.stride, card.embodiments) == (pytest.approx(10.0), 1, ("sawyer",))
    low, high = card.limits()
    assert high.tolist() == pytest.approx([8 * ACTION_SCALE] * 3 + [1.0])
    for actions, _, kinds in store.actions(range(0, len(store), 40)):
        assert kinds == card.kinds
        assert (actions >= low - 1e-6).all()
        assert (actions <= high + 1e-6).all()
