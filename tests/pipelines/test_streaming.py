"""The stream through Ray Data: the plan's windows, in the plan's order, from wherever it stopped."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from made_episodes import made_episodes

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.episodes.windows import Window, WindowPlan, WindowSpec
from roboalign_ray.foundation.failures import UserError

SPEC = WindowSpec(frames=5, context_range=3)
CONFIG = EpisodesConfig(held_out_fraction=0.2, shuffle_buffer=16)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "made"
    write_store(made_episodes(tasks=3, starts=5, variants=1), path, held_out_fraction=0.2)
    return path


def _stream(path: Path, **options):
    from roboalign_ray.pipelines.train.window_stream import WindowStream

    return WindowStream(path, CONFIG, SPEC, 4, seed=7, **options)


def _planned(path: Path, count: int, **share: int) -> list[Window]:
    """The same windows without Ray: the plan, read in this process."""
    store = open_store(path)
    plan = WindowPlan(store, SPEC, seed=7, held_out_fraction=0.2, shuffle_windows=16, **share)
    windows: list[Window] = []
    epoch = 0
    while len(windows) < count:
        for chunk in plan.chunks(epoch):
            windows += chunk.read(store, SPEC)
        epoch += 1
    return windows[:count]


def _same(batches: list[dict], windows: list[Window]) -> None:
    assert [name for batch in batches for name in batch["episode_id"]] == [w.episode_id for w in windows]
    for name in ("context", "frames", "actions"):
        streamed = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(streamed, np.stack([getattr(window, name) for window in windows]))


@pytest.mark.usefixtures("ray_cluster")
def test_batches_follow_the_plan_over_epochs_and_resume_in_the_middle(store_path: Path) -> None:
    size = len(open_store(store_path).split("train", 0.2)) * 4  # windows an epoch
    count = size // 4 + 6  # into the second epoch
    stream = _stream(store_path)
    batches, states = [], []
    for batch in islice(stream, count):
        batches.append(batch)
        states.append(stream.state_dict())
    first = batches[0]
    assert first["context"].shape == (4, 16, 16, 3)
    assert first["frames"].shape == (4, 5, 16, 16, 3)
    assert first["frames"].dtype == np.uint8
    assert first["actions"].dtype == np.float32
    assert states[-1]["epoch"] == 1
    _same(batches, _planned(store_path, 4 * count))

    for stop in (2, count - 4):  # inside the first epoch, and after its end
        again = _stream(store_path)
        again.load_state_dict(states[stop])
        _same(list(islice(again, 3)), _planned(store_path, 4 * count)[4 * (stop + 1) : 4 * (stop + 4)])


@pytest.mark.usefixtures("ray_cluster")
def test_ranks_stream_their_own_share(store_path: Path) -> None:
    batches = list(islice(_stream(store_path, rank=1, world_size=2), 3))
    _same(batches, _planned(store_path, 12, rank=1, world_size=2))


def test_a_position_of_another_stream_is_refused(store_path: Path) -> None:
    state = _stream(store_path).state_dict()
    with pytest.raises(UserError, match="has world_size 1, this stream 2"):
        _stream(store_path, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(UserError, match="has seed"):
        _stream(store_path).load_state_dict({**state, "seed": 8})


def test_positions_are_plain_values(store_path: Path) -> None:
    import json

    state = _stream(store_path).state_dict()
    assert json.loads(json.dumps(state)) == state
    from roboalign_ray.pipelines.train.window_stream import WindowStream

    views = WindowSpec(frames=5, context_range=3, views=("front", "hand"))
    several = WindowStream(store_path, CONFIG, views, 4, seed=7)
    told = json.loads(json.dumps(several.state_dict()))
    several.load_state_dict(told)  # nothing differs
    other = WindowStream(store_path, CONFIG, replace(views, views=("hand", "front")), 4, seed=7)
    with pytest.raises(UserError, match="has spec"):
        other.load_state_dict(told)


def test_bad_streams_are_told_before_ray_is_asked(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no episode store"):
        _stream(tmp_path)
    with pytest.raises(UserError, match="unknown split"):
        _stream(store_path, split="validation")
