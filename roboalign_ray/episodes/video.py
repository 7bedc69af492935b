"""Encodes and decodes whole videos through PyAV, which includes FFmpeg.

The store uses 4:4:4 H.264: at 64×64, the usual chroma subsampling has one colour per 2×2 block, which smears grippers
and small objects. Browsers play only 4:2:0, so the report uses `encode_browser_video`.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.pixel_budget import PIXELS, PixelBudget
from roboalign_ray.episodes.shaping import MOST_PIXELS
from roboalign_ray.episodes.video_container import name_of, open_video
from roboalign_ray.episodes.video_frames import read_frames
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
    """Encode frames to an mp4 with its index at the front.

    Args:
        frames: uint8 [T, H, W, 3] RGB.
        fps: frames per second.
        codec: an FFmpeg encoder.
        crf: constant rate factor, 0 (best) to 51.
        pixel_format: "yuv444p" keeps full colour; "yuv420p" needs even H and W.

    Raises:
        EpisodeError: the shape or type is wrong, or the encoder refuses the frames.
        HostError: the temporary folder is full or denies access.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise EpisodeError(
            f"cannot encode {frames.dtype} {frames.shape}, want uint8 [T, H, W, 3]", where="video"
        )
    options = {"crf": str(crf)}
    if codec == "libx264":
        options["x264-params"] = _COLOUR
    # Moving the index to the front rewrites the file, which FFmpeg does only with a real file.
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
    source: bytes | Path, *, most_pixels: int = MOST_PIXELS, budget: PixelBudget | None = PIXELS
) -> np.ndarray:
    """Decode every frame in presentation order, upright (rotation metadata is applied).

    Args:
        source: a file's bytes, or its path; containers and codecs: see `video_container`.
        most_pixels: limit on all frames together; a larger video is refused before it fills the memory.
        budget: see `read_frames`.

    Returns:
        uint8 [T, H, W, 3] RGB.

    Raises:
        EpisodeError: the file is missing, corrupt, truncated or too large, or has no frame.
        PixelsBusyError: other threads hold the memory.
    """
    return read_frames(source, most_pixels=most_pixels, budget=budget).pictures


def video_rate(source: bytes | Path) -> float:
    """The file's frame rate.

    Raises:
        EpisodeError: the file cannot be read, or states no frame rate.
    """
    with open_video(source) as video:
        rate = video.stream.average_rate
    if not rate:
        raise EpisodeError(
            "the video states no frame rate", where=name_of(source), remedy="encode it with a frame rate"
        )
    return float(rate)
