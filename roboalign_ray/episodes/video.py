"""Video in and out through PyAV, which carries its own FFmpeg.

The store keeps 4:4:4 H.264: at 64×64 the usual chroma subsampling leaves one colour per 2×2 block, which smears
grippers and small objects. Browsers play 4:2:0 only, so the report uses `encode_browser_video`.
"""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import raise_if_host

# Written into the stream, so that players do not guess another matrix for small frames.
_COLOUR = "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m"


def encode_video(
    frames: np.ndarray,
    fps: float,
    *,
    codec: str = "libx264",
    crf: int = 18,
    pixel_format: str = "yuv444p",
) -> bytes:
    """Encode frames to an mp4 whose index stands at its front.

    Args:
        frames: uint8 [T, H, W, 3] RGB.
        fps: frames per second.
        codec: an FFmpeg encoder.
        crf: constant rate factor, 0 (best) to 51.
        pixel_format: "yuv444p" keeps full colour; "yuv420p" wants even H and W.

    Raises:
        EpisodeError: wrong shape or type, or the encoder refuses them.
        HostError: the temporary folder is full or denies access.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise EpisodeError(
            f"cannot encode {frames.dtype} {frames.shape}, want uint8 [T, H, W, 3]", where="video"
        )
    options = {"crf": str(crf)}
    if codec == "libx264":
        options["x264-params"] = _COLOUR
    # Moving the index to the front rewrites the file, which FFmpeg does on a real file only.
    try:
        with tempfile.TemporaryDirectory(prefix="roboalign_video_") as folder:
            path = Path(folder) / "video.mp4"
            _write_mp4(path, frames, fps, codec, pixel_format, options)
            return path.read_bytes()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise_if_host(error, where=tempfile.gettempdir())
        raise EpisodeError(f"{codec} cannot encode {frames.shape}: {error}", where="video") from error


def _write_mp4(
    path: Path, frames: np.ndarray, fps: float, codec: str, pixel_format: str, options: dict[str, str]
) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = cast(av.VideoStream, container.add_stream(codec, rate=rate, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def encode_browser_video(frames: np.ndarray, fps: float, *, scale: int = 1, crf: int = 16) -> bytes:
    """An mp4 that every browser plays (H.264, 4:2:0), each pixel repeated `scale` times.

    Args:
        frames: uint8 [T, H, W, 3] RGB; an odd height or width is padded by its last row or column.
        fps: frames per second.
        scale: integer enlargement; 2 or more also hides the chroma subsampling.
        crf: constant rate factor.
    """
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    odd = [(0, 0), (0, large.shape[1] % 2), (0, large.shape[2] % 2), (0, 0)]
    return encode_video(np.pad(large, odd, mode="edge"), fps, crf=crf, pixel_format="yuv420p")


def decode_video(
    source: bytes | Path,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    most_pixels: int | None = None,
) -> np.ndarray:
    """Decode frames in presentation order, upright (rotation metadata is applied).

    Args:
        source: a file's bytes, or its path; any container and codec that FFmpeg reads.
        start_seconds, end_seconds: keep frames whose time is in [start, end); None keeps all.
        most_pixels: of all frames together; a larger video is refused while it is decoded, before it fills the memory.

    Returns:
        uint8 [T, H, W, 3] RGB.

    Raises:
        EpisodeError: missing, corrupt, truncated or too large file, or no frame in the range.
    """
    where = str(source) if isinstance(source, Path) else "video"
    if isinstance(source, Path) and not source.is_file():
        raise EpisodeError("no such video file", where=where)
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            if not container.streams.video:
                raise EpisodeError("has no video stream", where=where)
            stream = container.streams.video[0]
            expected = stream.frames
            frames = _decode(container, stream, start_seconds, end_seconds, most_pixels)
    except (av.FFmpegError, ValueError, EOFError, AttributeError) as error:
        raise EpisodeError(f"video cannot be decoded ({error})", where=where) from error
    if not frames:
        raise EpisodeError("video holds no frame in the range asked for", where=where)
    if start_seconds is None and end_seconds is None and len(frames) < expected:
        raise EpisodeError(f"video is truncated: {len(frames)} of {expected} frames decode", where=where)
    return np.stack(frames)


def video_rate(source: bytes | Path) -> float:
    """Frames per second as the file tells them.

    Raises:
        EpisodeError: it cannot be read, or tells none.
    """
    where = str(source) if isinstance(source, Path) else "video"
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except (av.FFmpegError, ValueError, EOFError, AttributeError) as error:
        raise EpisodeError(f"video cannot be opened ({error})", where=where) from error
    if not rate:
        raise EpisodeError("the video tells no frame rate", where=where, remedy="write it anew with one")
    return float(rate)


def _decode(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    start: float | None,
    end: float | None,
    most_pixels: int | None,
) -> list[np.ndarray]:
    stream.codec_context.thread_count = 1  # many small videos at once: threads would only compete
    half_frame = 0.5 / float(stream.average_rate) if stream.average_rate else 0.0
    if start and stream.time_base:
        container.seek(max(0, int((start - half_frame) / stream.time_base)), stream=stream)
    frames: list[np.ndarray] = []
    convert = (
        av.video.reformatter.VideoReformatter()
    )  # kept: a new one per frame would set up its tables again
    for frame in container.decode(stream):
        # Times are compared half a frame early: containers round them to their own clock.
        time = (frame.time or 0.0) + half_frame
        if end is not None and time >= end:
            break
        if start is not None and time < start:
            continue
        if most_pixels is not None and (len(frames) + 1) * frame.width * frame.height > most_pixels:
            raise ValueError(f"it holds more than the {most_pixels} pixels allowed")
        turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
        picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
        frames.append(np.ascontiguousarray(np.rot90(picture, turns)))
    return frames
