"""Video in and out: pictures come back in order, upright, and broken files are told."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.video import decode_video, encode_browser_video, encode_video


def _picture(length: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A saturated block of 6×6 pixels wanders over a colour gradient; the background brightens with time."""
    frames = np.zeros((length, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 120, width)[None, None, :] + 5 * np.arange(length)[:, None, None]
    frames[..., 1] = np.linspace(0, 120, height)[None, :, None]
    for t in range(length):
        frames[t, 10:16, 3 + 4 * t : 9 + 4 * t] = (255, 0, 0)
    return frames


def test_frames_come_back_in_order_and_nearly_the_same() -> None:
    frames = _picture()
    decoded = decode_video(encode_video(frames, 20.0))
    assert decoded.shape == frames.shape
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - frames).mean() < 2.5


def test_full_colour_keeps_small_objects_that_subsampling_smears() -> None:
    frames = _picture()
    block = np.s_[:, 10:16]
    error = {}
    for pixel_format in ("yuv444p", "yuv420p"):
        decoded = decode_video(encode_video(frames, 20.0, crf=10, pixel_format=pixel_format))
        error[pixel_format] = np.abs(decoded.astype(int) - frames)[block].mean()
    assert error["yuv444p"] < 0.5 * error["yuv420p"]


def test_a_file_reads_like_its_bytes(tmp_path: Path) -> None:
    data = encode_video(_picture(), 10.0)
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    assert np.array_equal(decode_video(path), decode_video(data))


def test_browser_video_is_what_browsers_play() -> None:
    data = encode_browser_video(_picture(height=47, width=63), 12.0, scale=3)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert (stream.height, stream.width) == (142, 190)
        assert float(stream.average_rate) == 12.0
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads


def test_fractional_rates_survive() -> None:
    with av.open(io.BytesIO(encode_video(_picture(), 30000 / 1001))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(30000 / 1001)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_metadata_turns_pictures_upright(turns: int, tmp_path: Path) -> None:
    """An independent muxer writes the display matrix by hand, as phones do; the reader must undo it."""
    upright = _picture(length=5)
    lying = np.ascontiguousarray(np.rot90(upright, -turns, axes=(1, 2)))  # stored turned clockwise
    data = bytearray(encode_video(lying, 10.0))
    track = data.index(b"tkhd") + 4
    assert data[track] == 0  # version 0: the matrix follows 40 bytes of other fields
    # ISO 14496-12: matrix {a b u c d v x y w}; a picture stored 90° clockwise is shown turned 90° counter-clockwise.
    cosine, sine = [(0, -1), (-1, 0), (0, 1)][turns - 1]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0]
    packed = b"".join(int(value * 65536).to_bytes(4, "big", signed=True) for value in matrix)
    data[track + 40 : track + 40 + 36] = packed + (1 << 30).to_bytes(4, "big")
    decoded = decode_video(bytes(data))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a video at all" * 20,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-30],
    ],
    ids=["empty", "not video", "cut in half", "end missing"],
)
def test_broken_files_raise_one_line(damage) -> None:
    with pytest.raises(EpisodeError, match="video"):
        decode_video(damage(encode_video(_picture(), 10.0)))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"absent\.mp4"):
        decode_video(tmp_path / "absent.mp4")


@pytest.mark.parametrize("frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_frames_of_another_kind_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(EpisodeError, match="cannot encode"):
        encode_video(frames, 10.0)
