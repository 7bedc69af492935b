"""Windows: the right frames with the right actions, and an order that follows from the seed alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_episodes import made_episode, made_episodes

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.store import EpisodeStore, open_store, write_store
from roboalign_ray.episodes.windows import (
    WindowPlan,
    WindowSpec,
    completing_starts,
    cut_window,
    held_out_windows,
    sample_window,
)
from roboalign_ray.foundation.failures import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path = tmp_path_factory.mktemp("stores") / "made"
    write_store(
        made_episodes(tasks=3, starts=12, variants=2), path, shard_episodes=16, held_out_fraction=0.25
    )
    return open_store(path)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 8), st.integers(0, 2**31))
def test_frames_and_actions_belong_together(frames: int, stride: int, context_range: int, seed: int) -> None:
    """In these episodes frame t has brightness 10t, and action t begins with the number t."""
    episode = made_episode(0, 5)
    spec = WindowSpec(frames=frames, stride=stride, context_range=context_range)
    window = sample_window(episode, spec, np.random.default_rng(seed))
    numbers = window.frames[:, 0, 0, 0] / 10
    np.testing.assert_array_equal(numbers, window.start + stride * np.arange(frames))
    context = window.context[0, 0, 0] / 10
    assert max(0, window.start - context_range * stride) <= context <= window.start
    for step, number in enumerate(numbers.astype(int)):
        passed = np.arange(number, min(number + stride, episode.length))
        np.testing.assert_allclose(window.actions[step], [passed.sum(), 0.5 * len(passed), 5])


def test_every_start_and_context_is_reached() -> None:
    episode, spec = made_episode(0, 0, length=6), WindowSpec(frames=3, context_range=2)
    seen = set()
    for seed in range(300):
        window = sample_window(episode, spec, np.random.default_rng(seed))
        seen.add((window.start, int(window.context[0, 0, 0] // 10)))
    assert seen == {(start, context) for start in range(4) for context in range(max(0, start - 2), start + 1)}


def test_pictures_are_resized_to_what_the_model_takes() -> None:
    window = cut_window(made_episode(0, 0), WindowSpec(frames=2, height=8, width=12), start=3, context=1)
    assert window.frames.shape == (2, 8, 12, 3)
    assert window.context.shape == (8, 12, 3)
    assert (window.frames[1] == 40).all()


def test_several_views_show_the_same_times_in_the_order_that_is_named() -> None:
    episode = made_episode(0, 0)
    name, pictures = next(iter(episode.frames.items()))
    wide = np.repeat(255 - pictures, 2, axis=2)  # another camera, of another size
    both = replace(episode, frames={name: pictures, "hand": wide})
    for views in (("hand", name), (name, "hand")):
        window = cut_window(both, WindowSpec(frames=3, height=8, width=8, views=views), start=2, context=1)
        assert (window.context.shape, window.frames.shape) == ((2, 8, 8, 3), (3, 2, 8, 8, 3))
        for place, view in enumerate(views):
            alone = cut_window(both, WindowSpec(frames=3, height=8, width=8, view=view), start=2, context=1)
            np.testing.assert_array_equal(window.frames[:, place], alone.frames)
            np.testing.assert_array_equal(window.context[place], alone.context)
    unsized = cut_window(both, WindowSpec(frames=1, views=(name, "hand")), start=0, context=0)
    assert unsized.frames.shape[2:4] == pictures.shape[1:3]
    with pytest.raises(EpisodeError, match="no view 'top'"):
        cut_window(both, WindowSpec(frames=1, views=(name, "top")), start=0, context=0)


def test_windows_past_the_end_are_refused() -> None:
    spec = WindowSpec(frames=5, stride=2)
    cut_window(made_episode(0, 0), spec, start=11, context=11)
    with pytest.raises(EpisodeError, match="no window"):
        cut_window(made_episode(0, 0), spec, start=12, context=11)
    with pytest.raises(EpisodeError, match="fewer than 41"):
        sample_window(made_episode(0, 0), WindowSpec(frames=41), np.random.default_rng(0))


def _order(plan: WindowPlan, epoch: int) -> list[tuple[int, int]]:
    return [window for chunk in plan.chunks(epoch) for window in chunk.windows]


def test_an_epoch_visits_every_train_episode_equally(store: EpisodeStore) -> None:
    plan = WindowPlan(store, WindowSpec(frames=5), seed=3, shuffle_windows=20)
    order = _order(plan, 0)
    assert sorted(order) == [(number, draw) for number in store.split("train") for draw in range(4)]
    assert order != _order(plan, 1)
    assert order == _order(WindowPlan(store, WindowSpec(frames=5), seed=3, shuffle_windows=20), 0)
    assert order != _order(WindowPlan(store, WindowSpec(frames=5), seed=4, shuffle_windows=20), 0)


def test_chunks_mix_episodes_and_stay_small(store: EpisodeStore) -> None:
    chunks = WindowPlan(store, WindowSpec(frames=5), seed=0, shuffle_windows=20).chunks(0)
    assert all(len(chunk.windows) <= 20 + 3 for chunk in chunks)
    assert len({number for number, _ in chunks[0].windows[:6]}) > 2


def test_ranks_share_the_epoch_without_overlap(store: EpisodeStore) -> None:
    shares = [
        _order(WindowPlan(store, WindowSpec(frames=5), seed=1, rank=rank, world_size=3), 2)
        for rank in range(3)
    ]
    everything = sorted(window for share in shares for window in share)
    assert everything == sorted(_order(WindowPlan(store, WindowSpec(frames=5), seed=1), 2))


def test_a_chunk_cut_short_gives_the_same_windows(store: EpisodeStore) -> None:
    spec = WindowSpec(frames=5, context_range=3)
    chunk = WindowPlan(store, spec, seed=0, shuffle_windows=12).chunks(0)[0]
    whole, rest = list(chunk.read(store, spec)), list(chunk.skip(7).read(store, spec))
    assert len(rest) == len(whole) - 7
    for window, again in zip(whole[7:], rest, strict=True):
        assert (window.episode_id, window.start) == (again.episode_id, again.start)
        np.testing.assert_array_equal(window.frames, again.frames)
        np.testing.assert_array_equal(window.context, again.context)


def test_held_out_windows_are_held_out_spread_and_repeatable(store: EpisodeStore) -> None:
    spec = WindowSpec(frames=5)
    windows = held_out_windows(store, spec, 6)
    held_out = {store.ids[number] for number in store.split("held_out")}
    assert {window.episode_id for window in windows} <= held_out
    tasks = {name.split("/")[1] for name in held_out}
    assert {window.episode_id.split("/")[1] for window in windows[: len(tasks)]} == tasks
    again = held_out_windows(store, spec, 6)
    assert [(w.episode_id, w.start) for w in windows] == [(w.episode_id, w.start) for w in again]


def test_more_held_out_windows_than_episodes_use_other_starts(store: EpisodeStore) -> None:
    count = len(store.split("held_out"))
    windows = held_out_windows(store, WindowSpec(frames=3), 3 * count)
    assert len({window.episode_id for window in windows}) == count
    assert len({(window.episode_id, window.start) for window in windows}) > 2 * count


@given(length=st.integers(5, 90), done=st.integers(0, 89), span=st.integers(2, 40))
def test_windows_that_begin_there_show_the_task_being_done(length: int, done: int, span: int) -> None:
    starts = completing_starts(length, done, span)
    for start in starts:
        assert 0 <= start <= length - span
        assert done in range(start, start + span)
        assert done - start >= span // 4 or start == 0
    assert completing_starts(length, None, span) == range(0)
    if 0 <= (latest := done - span // 4) <= length - span:
        assert latest in starts


def test_held_out_windows_begin_before_their_task_is_done() -> None:
    store, spec = open_store("shipped"), WindowSpec(frames=13, stride=2)
    moments = dict(zip(store.ids, store.successes(), strict=True))
    assert any(moments[store.ids[n]] is not None for n in store.split("held_out"))

    def shown(completing: float) -> float:
        windows = held_out_windows(store, spec, 40, completing=completing)
        known = [(w.start, moments[w.episode_id]) for w in windows if moments[w.episode_id] is not None]
        return float(np.mean([start <= done < start + spec.span for start, done in known]))

    assert shown(1.0) == 1
    assert shown(0.0) < 0.5


def test_impossible_windows_are_told(store: EpisodeStore) -> None:
    with pytest.raises(UserError, match="has the 21 frames"):
        WindowPlan(store, WindowSpec(frames=21), seed=0)
    with pytest.raises(UserError, match="for 1000 ranks"):
        WindowPlan(store, WindowSpec(frames=5), seed=0, world_size=1000)
    with pytest.raises(UserError, match="impossible window"):
        WindowSpec(frames=0)


def test_another_view_is_told(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no view 'wrist'"):
        sample_window(made_episode(0, 0), WindowSpec(frames=2, view="wrist"), np.random.default_rng(0))
