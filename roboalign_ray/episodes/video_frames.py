"""Reads frames of a video one by one: decodes, rotates upright, drops, resizes and keeps them.

Decoding ends after the expected frames, at a limit of pixels, or at a deadline, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from time import monotonic

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.pixel_budget import PIXELS, PixelBudget
from roboalign_ray.episodes.shaping import MOST_PIXELS, WHOLE, FrameCollector, Kept, Shaping, check_pixels
from roboalign_ray.episodes.video_container import OpenVideo, name_of, open_video

DECODE_S = 600.0  # deadline for one video, seconds
_WHOLLY_BEFORE = -0.999  # in frame periods: a frame with a smaller time ends before the beginning
_SEEK_BACK_S = (0, 1, 4, 16, 64, 2**20)


@dataclass(frozen=True)
class VideoSize:
    """Size of a video, known before decoding.

    Attributes:
        frames: maximum number of frames.
        height, width: pixels, as stored.
    """

    frames: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Pixels of all frames together."""
        return self.frames * self.height * self.width


def video_size(source: bytes | Path) -> VideoSize:
    """Frames and frame size, from the container's index or by counting its packets, without decoding.

    Raises:
        EpisodeError: the video cannot be read.
    """
    with open_video(source) as video:
        size = video.stream.codec_context.height, video.stream.codec_context.width
        frames = video.indexed
        if frames is None:
            frames = sum(bool(packet.size) for packet in _packets(video, monotonic() + DECODE_S))
    return VideoSize(frames, *size)


@dataclass(frozen=True)
class FrameTimes:
    """Display times of a video's frames.

    Attributes:
        ticks: int64 [T], ascending.
        tick_s: one tick in seconds.
        edited: as in `open_video`; frames are read in the same way.
    """

    ticks: np.ndarray
    tick_s: Fraction
    edited: bool = True

    @property
    def seconds(self) -> np.ndarray:
        """float64 [T]."""
        return self.ticks * float(self.tick_s)


def frame_times(source: bytes | Path) -> FrameTimes:
    """Display times of all frames, from the packets, without decoding.

    An edit list may begin inside a frame. FFmpeg hides that frame and shows the next one too early; here the frame
    counts, with its own time.

    Raises:
        EpisodeError: the video cannot be read, or a frame has no time or that of another one.
    """
    shown, hides = _packet_times(source, edited=True)
    if hides:
        whole, _ = _packet_times(source, edited=False)
        period = np.median(np.diff(whole.ticks)) if len(whole.ticks) > 1 else 0
        begun = whole.ticks[whole.ticks > _WHOLLY_BEFORE * period]
        if len(begun) - len(shown.ticks) in (0, 1):
            return replace(whole, ticks=begun)
    return shown


def _packet_times(source: bytes | Path, *, edited: bool) -> tuple[FrameTimes, bool]:
    """Times, and whether an edit list hides frames."""
    with open_video(source, edited=edited) as video:
        packets = [packet for packet in _packets(video, monotonic() + DECODE_S) if packet.size]
        times = [packet.pts for packet in packets if not packet.is_discard]
        hides, tick_s = len(times) < len(packets), video.stream.time_base
    if tick_s is None or not times or None in times or len(set(times)) != len(times):
        raise EpisodeError("its frames have no times of their own", where=name_of(source))
    return FrameTimes(np.sort(np.array(times, np.int64)), tick_s, edited), hides


def read_frames(
    source: bytes | Path,
    *,
    shaping: Shaping = WHOLE,
    at: FrameTimes | None = None,
    most_frames: int | None = None,
    most_pixels: int = MOST_PIXELS,
    budget: PixelBudget | None = PIXELS,
    most_seconds: float = DECODE_S,
) -> Kept:
    """Decode a video, or selected frames of it, in presentation order and upright.

    Args:
        source: a file's bytes, or its path; containers and codecs: see `video_container`.
        shaping: which frames are kept; its stride is known.
        at: the wanted frames, a subset of `frame_times`; None takes all.
        most_frames: decoding ends one frame later; `Kept.count` then only shows that there are more.
        most_pixels: limit on all kept frames together.
        budget: the pixels are leased from it during decoding; None if the caller holds a lease.
        most_seconds: deadline for decoding.

    Raises:
        EpisodeError: the file is missing, corrupt, truncated, too large or too slow, or has no frame.
        PixelsBusyError: other threads hold the memory.
    """
    where = name_of(source)
    convert = VideoReformatter()  # reused, because a new one would set up its tables again
    with open_video(source, edited=at is None or at.edited) as video:
        expected = len(at.ticks) if at is not None else video.indexed
        if expected is None:
            expected = video_size(source).frames
        if most_frames is not None:
            expected = min(expected, most_frames + 1)
        codec = video.stream.codec_context
        target = shaping.size(codec.height, codec.width)
        kept = -(-expected // shaping.stride)
        check_pixels(kept, target, most_pixels, where)
        frames = FrameCollector(shaping, expected, most_pixels=most_pixels, where=where)
        deadline = monotonic() + most_seconds
        shown = _all_frames(video, deadline) if at is None else _frames_at(video, at.ticks, deadline)
        with budget.lease(kept * target[0] * target[1]) if budget else nullcontext():
            for frame in shown:
                frames.add(_upright(frame, convert))
                if frames.count >= expected:
                    break
            taken = frames.done()
    least = len(at.ticks) if at is not None else video.least
    if taken.count < min(expected, least):
        raise EpisodeError(f"video is truncated: {taken.count} of {least} frames decode", where=where)
    return replace(taken, count=max(taken.count, least))


def _upright(frame: av.VideoFrame, convert: VideoReformatter) -> np.ndarray:
    """uint8 [H, W, 3] RGB."""
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.rot90(picture, turns) if turns else picture


def _all_frames(video: OpenVideo, deadline: float) -> Iterator[av.VideoFrame]:
    for packet in _packets(video, deadline):
        yield from packet.decode()


def _frames_at(video: OpenVideo, at: np.ndarray, deadline: float) -> Iterator[av.VideoFrame]:
    """The frames of these times."""
    wanted, base = {int(time) for time in at}, video.stream.time_base
    assert base is not None
    for back_s in _SEEK_BACK_S:
        video.container.seek(int(at[0]) - int(back_s / base), stream=video.stream)
        frames = _all_frames(video, deadline)
        first = next((frame for frame in frames if frame.pts is not None and frame.pts >= at[0]), None)
        # Containers seek by decoding time, so the key frame found may be after the wanted frame.
        if first is not None and first.pts == at[0]:
            yield first
            yield from (frame for frame in frames if frame.pts in wanted)
            return


def _packets(video: OpenVideo, deadline: float) -> Iterator[av.Packet]:
    for packet in video.container.demux(video.stream):
        if monotonic() > deadline:
            raise ValueError("it takes too long")
        yield packet
