"""Videos for tests whose frames tell their numbers, in any container, codec, rate and timing; written by PyAV's muxers.

A picture shows two numbers as black and white bars: the upper half the first one, the lower half the second one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

SIDE = 64
_CLOCK = 90_000


def picture(first: int, second: int) -> np.ndarray:
    """uint8 [64, 64, 3]."""
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    for row, value in enumerate((first, second)):
        for bit in range(8):
            frame[row * 32 : row * 32 + 32, bit * 8 : bit * 8 + 8] = 255 * (value >> bit & 1)
    return frame


def numbers(frame: np.ndarray) -> tuple[int, int]:
    """What a picture shows."""
    rows = [
        sum((frame[r * 32 + 4 : r * 32 + 28, b * 8 + 2 : b * 8 + 6].mean() > 128) << b for b in range(8))
        for r in (0, 1)
    ]
    return int(rows[0]), int(rows[1])


def film(
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction | float = 30,
    times_s: Sequence[float] | None = None,
    container: str = "mp4",
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    b_frames: int = 0,
    key_every: int = 12,
    options: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
    sound: bool = False,
) -> bytes:
    """A video file.

    Args:
        times_s: when each frame is shown; None counts at `rate`.
        options, settings: of the muxer, and of the encoder.
        sound: with an audio stream.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as out:
        stream: Any = out.add_stream(
            codec, rate=Fraction(rate).limit_denominator(1001), options=settings or {}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.gop_size = key_every
        stream.codec_context.max_b_frames = b_frames
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, _CLOCK)
        if sound:
            _sound(out)
        for number, frame in enumerate(frames):
            layout = "gray" if frame.ndim == 2 else "rgb24"
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=layout)
            if times_s is not None:
                shown.pts, shown.time_base = round(times_s[number] * _CLOCK), Fraction(1, _CLOCK)
            out.mux(stream.encode(shown))
        out.mux(stream.encode(None))
    return file.getvalue()


def _sound(out: Any) -> None:
    track = out.add_stream("aac", rate=8000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
    silence.sample_rate = 8000
    out.mux(track.encode(silence))
    out.mux(track.encode(None))


def remuxed(data: bytes, change: Callable[[int, Any], bool], container: str = "mp4", **options: str) -> bytes:
    """The packets of a video in another file; `change(number, packet)` may move a packet in time or leave it out."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=container, options=options) as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None and change(number, packet):
                packet.stream = copy
                out.mux(packet)
    return file.getvalue()


def trimmed(data: bytes, first: int, rate: int = 30) -> bytes:
    """An mp4 cut to begin at frame `first` without encoding it again.

    It keeps the packets from the last key frame before on; an edit list hides those shown before `first`.
    """
    with av.open(io.BytesIO(data)) as source:
        base = source.streams.video[0].time_base
        assert base is not None
        shift = int(first * Fraction(1, rate) / base)
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= shift]

    def change(number: int, packet: Any) -> bool:
        packet.pts -= shift
        packet.dts -= shift
        return number >= keys[-1]

    return remuxed(data, change, avoid_negative_ts="disabled")
