"""Frames of a shared video: the true ones, or none. Rates, offsets, gaps and neighbours, with the truth known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.frame_matching import TOLERANCE, Match, Stretch, match_frames

NTSC = float(Fraction(30000, 1001))


def table(lengths: list[int], fps: float) -> list[Stretch]:
    """The episodes one after the other, counted at `fps`."""
    bounds = np.concatenate([[0], np.cumsum(lengths)]) / fps
    return [Stretch(float(a), float(b), n) for a, b, n in zip(bounds[:-1], bounds[1:], lengths, strict=True)]


def matched(times: np.ndarray, episodes: list[Stretch], number: int, fps: float) -> Match | None:
    own = episodes[number]
    try:
        return match_frames(times, episodes, own, own.start + np.arange(own.length) / fps, fps)
    except EpisodeError:
        return None


@settings(max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    rates=st.sampled_from(
        [
            (30, 30),
            (NTSC, 30),
            (30, NTSC),
            (24000 / 1001, 24),
            (60000 / 1001, 60),
            (25, 24),
            (15, 30),
            (12800, 30),
        ]
    ),
    offset=st.floats(-3, 3),
    jitter=st.sampled_from([0.0, 0.05, 0.3, 0.45]),
    seed=st.integers(0, 99),
)
def test_frames_of_a_whole_file_are_the_true_ones_or_refused(lengths, rates, offset, jitter, seed) -> None:
    """Whatever the clocks do, frame n of the file belongs to row n of the table."""
    video_fps, fps = rates
    total = sum(lengths)
    noise = jitter * np.random.default_rng(seed).uniform(-1, 1, total)
    times = (np.arange(total) + offset + noise) / video_fps
    episodes, first = table(lengths, fps), 0
    for number, length in enumerate(lengths):
        match = matched(times, episodes, number, fps)
        if match is not None:
            assert match.positions.tolist() == list(range(first, first + length))
        elif jitter < 0.05:
            pytest.fail(f"episode {number} is certain, and was refused")
        first += length


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(2, 300), min_size=2, max_size=12),
    video_fps=st.sampled_from([30.0, NTSC, 30.03, 31.0]),
    offset=st.floats(-0.35, 0.35),
    data=st.data(),
)
def test_where_the_table_names_only_some_episodes_times_decide_or_nothing(
    lengths, video_fps, offset, data
) -> None:
    """Without all counts a video whose clock runs apart is refused before a neighbour's frame can pass."""
    times = (np.arange(sum(lengths)) + offset) / video_fps
    episodes = table(lengths, 30)
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    named = data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1, max_size=len(lengths) - 1))
    listed = [episodes[number] for number in sorted(named)]
    for number in named:
        match = matched(times, listed, listed.index(episodes[number]), 30)
        if match is not None:
            assert match.positions[0] == firsts[number]
            assert (np.diff(match.positions) == 1).all()
        else:
            assert video_fps != 30.0


@pytest.mark.parametrize("place", [0, 57, 150, 298])
@pytest.mark.parametrize("kind", ["missing", "double"])
def test_a_missing_or_double_frame_never_moves_the_others(place: int, kind: str) -> None:
    """A frame that the recorder dropped leaves a gap; one that it wrote twice lies between two others."""
    clock = np.arange(300) / 30
    if kind == "missing":
        times, truth = np.delete(clock, place), np.delete(np.arange(300), place)
    else:
        times = np.sort(np.append(clock, clock[place] + 0.5 / 30))
        truth = np.round(times * 30 - 1e-6)
    episodes = table([100, 100, 100], 30)
    for number in range(3):
        match = matched(times, episodes, number, 30)
        if match is not None:
            assert np.abs(truth[match.positions] - (100 * number + np.arange(100))).max() == 0
            assert not (kind == "missing" and number == place // 100)
        else:
            assert number >= place // 100


@pytest.mark.parametrize("missing", [1, 3])
def test_frames_that_are_missing_without_a_gap_may_be_anybodys(missing: int) -> None:
    """A file that was written anew without some frames looks like one that lacks its last ones."""
    episodes = table([100, 100, 100], 30)
    for number in range(3):
        assert matched(np.arange(300 - missing) / 30, episodes, number, 30) is None


def test_a_file_that_lacks_whole_episodes_at_its_end_keeps_the_others() -> None:
    episodes = table([100, 100, 100], 30)
    assert [matched(np.arange(200) / 30, episodes, n, 30) is None for n in range(3)] == [False, False, True]


def test_a_few_frames_too_many_are_told() -> None:
    episodes = table([100, 100, 100], 30)
    for more, told in ((1, True), (0, False), (100, False)):
        match = matched(np.arange(300 + more) / 30, episodes, 1, 30)
        assert match is not None
        assert ("301 frames" in match.note) is told


def test_counts_that_only_happen_to_fit_prove_nothing() -> None:
    """A frame dropped in the first episode and one written twice in the third: the sum is right, the order is not."""
    kept = np.delete(np.arange(300), 50)
    truth = np.insert(kept, 249, 250).astype(float)
    times = truth / 30
    times[250] += 0.5 / 30
    for number in range(3):
        match = matched(times, table([100, 100, 100], 30), number, 30)
        if match is not None:
            assert truth[match.positions].tolist() == list(range(100 * number, 100 * number + 100))
    assert matched(times, table([100, 100, 100], 30), 0, 30) is None


def test_one_frame_too_many_before_and_one_too_few_after_is_no_matter_of_counting() -> None:
    """The sum fits, yet the second episode begins at frame 101: its start in the table says so."""
    times = np.arange(200) / 30
    episodes = [Stretch(0.0, 101 / 30, 100), Stretch(101 / 30, 201 / 30, 100)]
    first, second = matched(times, episodes, 0, 30), matched(times, episodes, 1, 30)
    assert first is not None
    assert first.positions.tolist() == list(range(100))
    assert second is None


def test_starts_taken_from_the_video_itself_hold_for_long_episodes() -> None:
    """Merged files: the table's starts follow the video's clock, the rows inside an episode the table's."""
    times = np.arange(4000) / NTSC
    episodes = [Stretch(1000 * k / NTSC, 1000 * (k + 1) / NTSC, 1000) for k in range(4)]
    for number in range(4):
        match = matched(times, episodes, number, 30)
        assert match is not None
        assert match.positions.tolist() == list(range(1000 * number, 1000 * number + 1000))
        assert "29.97" in match.note


def test_a_video_of_twice_the_rate_gives_every_second_frame() -> None:
    times = np.arange(600) / 60
    match = matched(times, table([100, 100, 100], 30), 1, 30)
    assert match is not None
    assert match.positions.tolist() == list(range(200, 400, 2))
    assert match.note == ""


def test_an_offset_up_to_the_tolerance_needs_no_count_and_half_a_frame_needs_one() -> None:
    episodes = table([50, 50], 30)
    for offset in (-TOLERANCE, -1 / 3, 1 / 3, TOLERANCE):
        match = matched((np.arange(100) + offset) / 30, episodes, 1, 30)
        assert match is not None
        assert (match.positions[0], match.note) == (50, "")
    match = matched((np.arange(100) + 0.5) / 30, episodes, 1, 30)
    assert match is not None
    assert match.positions[0] == 50
    assert match.note.startswith("by count")
    assert matched((np.arange(99) + 0.5) / 30, episodes, 0, 30) is None


def test_rows_beyond_their_stretch_do_not_take_the_next_episodes_frames() -> None:
    times = np.arange(300) / 30
    episodes = [Stretch(0.0, 99 / 30, 100), Stretch(99 / 30, 200 / 30, 101)]
    assert matched(times, episodes, 0, 30) is None
    with pytest.raises(EpisodeError, match=r"300 frames at 30 Hz.*201 rows at 30 Hz") as told:
        match_frames(times, episodes, episodes[0], np.arange(100) / 30, 30)
    assert "\n" not in told.value.line()


@pytest.mark.parametrize("start", [0.0, 5 / 30, 99 / 30])
def test_frames_that_the_table_gives_to_two_episodes_are_nobodys(start: float) -> None:
    times = np.arange(300) / 30
    episodes = [
        Stretch(0.0, 100 / 30, 100),
        Stretch(start, start + 100 / 30, 100),
        Stretch(200 / 30, 10.0, 100),
    ]
    assert matched(times, episodes, 0, 30) is None
    assert matched(times, episodes, 1, 30) is None
    kept = matched(times, episodes, 2, 30)
    assert kept is not None
    assert kept.positions[0] == 200
