"""Assigns the frames of a shared video to an episode: by time, or by count if the counts prove the assignment.

One video file holds the frames of many episodes in sequence. The episode table gives the second at which each episode
begins. If the video's clock differs from the table's (for example 29.97 and 30 Hz), the times drift apart over the
file, until the nearest frame is a neighbour's. So a match by time is valid only while both clocks agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError

# Maximum distance of a frame from its row, as a share of the table's frame period. A third of a frame is unambiguous;
# at half a frame, two frames are equally near.
TOLERANCE = 0.4
_ALLOWED = TOLERANCE + 1e-6  # frame periods, with a margin for rounding
_SAME_CLOCK = 0.05  # rates with a smaller relative difference are two clocks for one rate


@dataclass(frozen=True)
class Stretch:
    """Position of an episode in a video, in seconds, and its number of rows."""

    start: float
    end: float
    length: int


@dataclass(frozen=True)
class Match:
    """Frames of an episode.

    Attributes:
        positions: int64 [T], ascending: frame numbers in the file.
        note: how they were found, if not by time; for the provenance.
    """

    positions: np.ndarray
    note: str = ""


def match_frames(
    times_s: np.ndarray, stretches: Sequence[Stretch], own: Stretch, rows_s: np.ndarray, fps: float
) -> Match:
    """Find the frame of each row of an episode.

    Args:
        times_s: float64 [N], ascending: display time of each frame of the file.
        stretches: all episodes that the table assigns to this file, including `own`.
        own: the episode.
        rows_s: float64 [T], seconds in the file at which the table expects the rows.
        fps: rate of the table.

    Raises:
        EpisodeError: neither times nor counts identify the frames (the message has both); frames are missing without
            a gap; or the table also assigns some of them to another episode.
    """
    _check_alone(stretches, own, fps)
    counted = _Counted(times_s, stretches, own, fps)
    right = np.clip(np.searchsorted(times_s, rows_s), 0, len(times_s) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(rows_s - times_s[left] <= times_s[right] - rows_s, left, right)
    off = np.abs(times_s[nearest] - rows_s) * fps
    fits = off.max() <= _ALLOWED and bool((np.diff(nearest) > 0).all())
    if counted.complete:
        fits &= bool((np.diff(nearest) == 1).all())  # every frame belongs to a row
    fits &= (rows_s[-1] - own.end) * fps + 1 <= _ALLOWED  # its last frame is not the next episode's first
    if counted.shortened:
        raise EpisodeError(f"{counted.counts_and_rates()}: frames are missing, and no gap shows where")
    if counted.starts_agree and fits and nearest[0] == counted.first:
        return Match(nearest)
    if counted.proven:
        return Match(np.arange(counted.first, counted.first + own.length), counted.note)
    # If the counts are complete, they must give the same result: else the times or the counts are wrong.
    alike = not counted.complete or nearest[0] == counted.first
    if fits and alike and counted.begins and _clocks_agree(times_s, nearest, rows_s, fps):
        return Match(nearest, counted.surplus)
    worst = int(off.argmax())
    raise EpisodeError(
        f"row {worst} at {rows_s[worst]:.4f} s is {off[worst]:.2f} frames from the nearest frame; "
        f"{counted.counts_and_rates()}",
        remedy=f"at most {TOLERANCE:g} of a frame, and clocks that agree, leave no doubt which frame is meant",
    )


def _check_alone(stretches: Sequence[Stretch], own: Stretch, fps: float) -> None:
    def end(one: Stretch) -> float:  # by its rows, or by the table where its clock runs faster
        return min(one.end, one.start + one.length / fps)

    sharing = [
        one for one in stretches if min(end(one), end(own)) - max(one.start, own.start) > _ALLOWED / fps
    ]
    if len(sharing) > 1 and own in sharing:
        raise EpisodeError(
            f"the episode table gives {len(sharing)} episodes frames between {own.start:.4f} and {end(own):.4f} s"
        )


class _Counted:
    """Counts of frames, with the episodes in the order of their starts.

    Attributes:
        first: frame number of the episode's first frame, by count.
        complete: whether the file has as many frames as these episodes have rows.
        begins: whether the first frame's time is the table's first second, or 0.
        gapless: whether the table counts from each episode's start to the next by its own clock.
        shortened: whether a few frames are missing, and the file ends early by their duration: they may be missing
            anywhere, and the times after them may have been renumbered.
        shortest: number of rows of the shortest episode.
        starts_agree: whether count and time give the same start for every episode.
        proven: whether the file holds exactly the frames of these episodes, evenly spaced, and the table has no gap, by
            its own clock or by the video's: then the order alone identifies each frame.
    """

    def __init__(self, times_s: np.ndarray, stretches: Sequence[Stretch], own: Stretch, fps: float) -> None:
        ordered = sorted(stretches, key=lambda one: one.start)
        starts = np.array([one.start for one in ordered])
        lengths = np.array([one.length for one in ordered])
        firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.first, self.total = int(firsts[ordered.index(own)]), int(lengths.sum())
        self.frames, self.fps = len(times_s), fps
        self.video_fps = (len(times_s) - 1) / (times_s[-1] - times_s[0]) if len(times_s) > 1 else fps
        within = _ALLOWED / fps
        self.begins = min(abs(times_s[0]), abs(times_s[0] - starts[0])) <= within
        self.complete = self.total == self.frames and bool((lengths > 0).all())
        self.starts_agree = self.complete and bool((np.abs(times_s[firsts] - starts) <= within).all())
        self.gapless = bool((np.abs(starts - starts[0] - firsts / fps) <= within).all())
        self.shortest = int(lengths.min())
        late = (starts[0] + (self.total - 1) / fps - times_s[-1]) * fps
        few = 0 < self.total - self.frames < self.shortest
        self.shortened = few and self.gapless and late > 0.5
        by_table = self.complete and self.gapless
        inside = times_s[self.first : self.first + own.length]
        self.proven = (self.starts_agree and _even(inside)) or (by_table and _even(times_s))

    @property
    def surplus(self) -> str:
        """A remark if a few frames, fewer than an episode has, belong to no row; else ""."""
        if 0 < self.frames - self.total < self.shortest and self.gapless:
            return f"by time: {self.counts_and_rates()}"
        return ""

    @property
    def note(self) -> str:
        """How the frames were found by count."""
        return (
            f"by count: the video runs at {self.video_fps:.6g} Hz, the table at {self.fps:.6g} Hz, and the file holds "
            f"exactly the {self.total} frames of its episodes"
        )

    def counts_and_rates(self) -> str:
        """The counts and rates, for errors."""
        return (
            f"the file shows {self.frames} frames at {self.video_fps:.6g} Hz, the table places {self.total} rows at "
            f"{self.fps:.6g} Hz in it"
        )


def _even(times_s: np.ndarray) -> bool:
    """Whether no frame is missing or doubled: every gap is close to the mean gap."""
    gaps = np.diff(times_s)
    return len(gaps) == 0 or bool((np.abs(gaps - gaps.mean()) <= _ALLOWED * gaps.mean()).all())


def _clocks_agree(times_s: np.ndarray, nearest: np.ndarray, rows_s: np.ndarray, fps: float) -> bool:
    """Whether the number of frames before the rows agrees with the table's clock.

    A video of a very different rate, such as twice the table's, has no frame for each row: then only times are used.
    """
    passed_s = rows_s - times_s[0]
    gaps = np.diff(times_s[: int(nearest[-1]) + 1])
    if not len(gaps):
        return True
    frames_a_row = max(1, round(1 / (gaps.mean() * fps)))
    if abs(gaps.mean() * fps * frames_a_row - 1) > _SAME_CLOCK:
        return True
    drift = np.abs(nearest - frames_a_row * passed_s * fps)
    return bool(drift.max() <= frames_a_row * _ALLOWED + (0.5 if frames_a_row > 1 else 0.0))
