"""Opens a video that somebody else may have made: bytes or a file on disk, and nothing else.

FFmpeg reads many more things than video files: addresses, playlists, session descriptions, patterns of picture files,
each of which can name other files or hosts. Here it is given an open file, never a name; it may open nothing else; and
containers and codecs stand on a list. The size of a frame and the number of samples are bounded before any is decoded.
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
from roboalign_ray.foundation.failures import raise_if_host

FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
# FFmpeg's names of decoders: what cameras, recorders and video models write.
CODECS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "libvpx-vp9"),
    *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "mjpeg", "theora"),
    *("ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "prores", "dnxhd"),
)
MOST_FRAME_PIXELS = 4096 * 2304  # of one frame; decoders keep up to 17 of them
_MOST_STREAMS = 64

# What damaged data leads to: OSError where FFmpeg seeks to a place before the file, AttributeError where a stream has
# no decoder. Failures of the machine are told apart by `raise_if_host`.
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
    "protocol_whitelist": "none",  # the file is read through Python: FFmpeg itself opens nothing
    "max_streams": str(_MOST_STREAMS),
    "max_pixels": str(MOST_FRAME_PIXELS),
}


@dataclass(frozen=True)
class OpenVideo:
    """An open container and its video stream.

    Attributes:
        container, stream: PyAV's.
        indexed: exactly how many frames its index shows; None where it has no index.
        least: how many frames must decode, or it is cut off; 0 where the container does not say.
    """

    container: av.container.InputContainer
    stream: av.VideoStream
    indexed: int | None
    least: int


def name_of(source: bytes | Path) -> str:
    """What messages call a source."""
    return str(source) if isinstance(source, Path) else "video"


@contextmanager
def open_video(source: bytes | Path, *, edited: bool = True) -> Iterator[OpenVideo]:
    """Open a video; an error of decoding inside the block becomes an EpisodeError.

    Args:
        source: a file's bytes, or its path. A text is refused: FFmpeg would take it for an address.
        edited: hide what an mp4's edit list hides. If not, its times alone are taken from the edit list, so that frames
            before the beginning have times below 0.

    Raises:
        EpisodeError: anything else, no such file, a container or codec that is not on the list, or damaged data.
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
            remedy="encode it anew as H.264",
        )
    if codec.width * codec.height > MOST_FRAME_PIXELS:
        raise EpisodeError(
            f"a frame of {codec.width}x{codec.height} is larger than {MOST_FRAME_PIXELS} pixels", where=where
        )
    codec.options = {"max_pixels": _OPTIONS["max_pixels"]}
    codec.thread_count = 1  # many small videos at once: threads would only compete
    return streams[0]


def _shown_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int | None:
    """Samples that an mp4's index does not hide: an edit list keeps some that only others are predicted from."""
    if "mp4" in container.format.name and (index := stream.index_entries):
        return sum(not entry.is_discard for entry in index)
    return None


def _error_text(error: BaseException) -> str:
    if isinstance(error, av.FFmpegError):
        return error.strerror or type(error).__name__
    return str(error) or type(error).__name__
