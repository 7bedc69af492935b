"""Opens a video from an untrusted source: bytes or a file on disk, and nothing else.

FFmpeg reads many things besides video files: addresses, playlists, session descriptions, patterns of picture files,
each of which can name other files or hosts. This module gives it an open file, never a name; FFmpeg may open nothing
else, and only listed containers and codecs. Frame size and number of samples are checked before decoding.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av

from roboalign_ray.episodes.container_checks import check_container
from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.shaping import MOST_FRAME_PIXELS
from roboalign_ray.foundation.failures import raise_if_host

FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
# FFmpeg's names of decoders for the output of cameras, recorders and video models.
CODECS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "libvpx-vp9"),
    *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "mjpeg", "theora"),
    *("ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "prores", "dnxhd"),
)
_MOST_STREAMS = 64

# Exceptions for damaged data: OSError if FFmpeg seeks to a place before the file, AttributeError if a stream has no
# decoder. `raise_if_host` separates failures of the machine.
_DATA_ERRORS = (
    av.FFmpegError,
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    LookupError,
    AttributeError,
)
_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "codec_whitelist": ",".join(CODECS),
    "protocol_whitelist": "none",  # the file is read through Python; FFmpeg itself opens nothing
    "max_streams": str(_MOST_STREAMS),
    "max_pixels": str(MOST_FRAME_PIXELS),
}


@dataclass(frozen=True)
class OpenVideo:
    """An open container and its video stream.

    Attributes:
        container, stream: PyAV's.
        indexed: exact number of frames that its index shows; None if it has no index.
        least: number of frames that must decode, or the file is truncated; 0 if the container does not state it.
    """

    container: av.container.InputContainer
    stream: av.VideoStream
    indexed: int | None
    least: int


def name_of(source: bytes | Path) -> str:
    """The name of a source in messages."""
    return str(source) if isinstance(source, Path) else "video"


@contextmanager
def open_video(source: bytes | Path, *, edited: bool = True) -> Iterator[OpenVideo]:
    """Open a video. A decoding error inside the block becomes an EpisodeError.

    Args:
        source: a file's bytes, or its path. A string is refused: FFmpeg would take it for an address.
        edited: hide the frames that an mp4's edit list hides. If False, only times are taken from the edit list, so
            that frames before the beginning have negative times.

    Raises:
        EpisodeError: the source is of another type, the file is missing, container or codec are not listed, or damaged
            data.
    """
    where = name_of(source)
    options = _OPTIONS if edited else _OPTIONS | {"advanced_editlist": "0"}
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_file(source, where))
            check_container(file)
            container = stack.enter_context(av.open(file, "r", options=options, metadata_errors="replace"))
            stream = _video_stream(container, where)
            indexed = _shown_frames(container, stream)
            yield OpenVideo(container, stream, indexed, stream.frames if indexed is None else indexed)
    except EpisodeError:
        raise
    except _DATA_ERRORS as error:
        raise_if_host(error, where=where)
        raise EpisodeError(f"video cannot be decoded ({_error_text(error)})", where=where) from error


def _file(source: bytes | Path, where: str) -> BinaryIO:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if not isinstance(source, Path):
        raise EpisodeError(
            f"video is {type(source).__name__}, not a file's bytes",
            where=where,
            remedy="give bytes or a Path",
        )
    if not source.is_file():
        raise EpisodeError("no such video file", where=where)
    return source.open("rb")


def _video_stream(container: av.container.InputContainer, where: str) -> av.VideoStream:
    pictures = av.stream.Disposition.attached_pic  # a cover, not a video
    streams = [one for one in container.streams.video if not one.disposition & pictures]
    if not streams:
        raise EpisodeError("has no video stream", where=where)
    codec = streams[0].codec_context
    if codec is None or codec.name not in CODECS:
        raise EpisodeError(
            f"video codec '{codec.name if codec else 'unknown'}' is not read",
            where=where,
            remedy="encode it as H.264",
        )
    if codec.width * codec.height > MOST_FRAME_PIXELS:
        raise EpisodeError(
            f"a frame of {codec.width}x{codec.height} is larger than {MOST_FRAME_PIXELS} pixels", where=where
        )
    codec.options = {"max_pixels": _OPTIONS["max_pixels"]}
    codec.thread_count = 1  # many small videos are decoded at once, so threads would only compete
    return streams[0]


def _shown_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int | None:
    """Number of samples that an mp4's index shows; an edit list also keeps samples for prediction only."""
    if "mp4" in container.format.name and (index := stream.index_entries):
        return sum(not entry.is_discard for entry in index)
    return None


def _error_text(error: BaseException) -> str:
    if isinstance(error, av.FFmpegError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__
