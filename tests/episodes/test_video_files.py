"""Files as cameras, editors and networks leave them: read right, or refused in a line. Frames tell their numbers."""

from __future__ import annotations

import io
import struct
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import film, numbers, picture, remuxed, trimmed

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.video import decode_video, video_rate
from roboalign_ray.episodes.video_frames import frame_times, read_frames, video_size

CUT_OFF = r"truncated|cannot be decoded"
FRAMES = [picture(0, t) for t in range(60)]


def shown(data: bytes | Path) -> list[int]:
    return [numbers(frame)[1] for frame in decode_video(data)]


# --- cut without encoding again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("first", [1, 12, 13, 17, 23, 30, 58])
def test_a_trimmed_mp4_shows_what_its_edit_list_shows(b_frames: int, first: int) -> None:
    whole = film(FRAMES, b_frames=b_frames)
    cut = trimmed(whole, first)
    with av.open(io.BytesIO(cut)) as container:
        reference = [numbers(f.to_ndarray(format="rgb24"))[1] for f in container.decode(video=0)]
    assert shown(cut) == reference
    assert reference[-1] == 59
    assert abs(reference[0] - first) <= 1  # what the decoder itself makes of an edit list between frames
    assert video_size(cut).frames == len(reference)


def test_an_edit_list_that_ends_early_hides_the_rest() -> None:
    data = bytearray(film(FRAMES))
    place = data.index(b"elst")
    version, count, duration, start = struct.unpack(">IIIi", data[place + 4 : place + 20])
    assert (version, count, start) == (0, 1, 0)
    struct.pack_into(">I", data, place + 12, duration // 2)
    assert shown(bytes(data)) == list(range(30))


@pytest.mark.parametrize("first", [0, 17])
def test_a_truncated_mp4_is_refused_trimmed_or_not(first: int) -> None:
    data = _index_first(trimmed(film(FRAMES), first))
    with av.open(io.BytesIO(data)) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(decode_video(data)) == 60 - first
    for missing in (1, sizes[-2] + 2, sum(sizes[-20:])):
        with pytest.raises(EpisodeError, match=CUT_OFF):
            decode_video(data[:-missing])


def _index_first(data: bytes) -> bytes:
    """The same file with its index before its frames, which FFmpeg does on a real file only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with av.open(io.BytesIO(data)) as source:
            flags = {"movflags": "+faststart", "avoid_negative_ts": "disabled"}
            with av.open(str(path), "w", options=flags) as out:
                stream = source.streams.video[0]
                copy = out.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        out.mux(packet)
        return path.read_bytes()


@pytest.mark.parametrize(
    ("container", "codec"),
    [("matroska", "libx264"), ("webm", "libvpx"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")],
)
def test_other_containers_are_read_whole_and_refused_when_cut_off(container: str, codec: str) -> None:
    data = film(FRAMES, container=container, codec=codec)
    assert shown(data) == list(range(60))
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(EpisodeError, match=CUT_OFF):
            decode_video(data[: int(share * len(data))])


def test_fragments_and_transport_streams_are_read() -> None:
    fragments = film(FRAMES, options={"movflags": "frag_keyframe+empty_moov"})
    assert shown(fragments) == list(range(60))
    with pytest.raises(EpisodeError, match=CUT_OFF):
        decode_video(fragments[: int(0.6 * len(fragments))])
    assert shown(film(FRAMES, container="mpegts")) == list(range(60))


# --- kinds of pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container", "pixel_format"),
    [
        ("libx264", "mp4", "yuv444p"),
        ("libx264", "mp4", "yuv420p10le"),
        ("libx264", "mp4", "gray"),
        ("libx265", "mp4", "yuv420p"),
        ("libx265", "mp4", "yuv420p10le"),
        ("libsvtav1", "mp4", "yuv420p"),
        ("mpeg4", "mp4", "yuv420p"),
        ("mjpeg", "mov", "yuvj420p"),
        ("ffv1", "matroska", "bgr0"),
        ("ffv1", "matroska", "gray16le"),
        ("png", "mov", "rgb24"),
        ("png", "mov", "rgba"),
        ("libvpx-vp9", "webm", "yuva420p"),
        ("prores_ks", "mov", "yuv422p10le"),
        ("rawvideo", "avi", "bgr24"),
    ],
)
def test_depths_grey_and_transparency_come_out_as_rgb(codec: str, container: str, pixel_format: str) -> None:
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    data = film(FRAMES[:10], codec=codec, container=container, pixel_format=pixel_format, settings=quiet)
    frames = decode_video(data)
    assert [numbers(frame)[1] for frame in frames] == list(range(10))
    assert np.abs(frames[7].astype(int) - FRAMES[7]).mean() < 12


def test_interlaced_and_odd_sizes_are_read() -> None:
    woven = film(FRAMES[:10], settings={"x264-params": "interlaced=1"})
    assert shown(woven) == list(range(10))
    odd = [frame[:63, :61] for frame in FRAMES[:4]]
    assert decode_video(film(odd, pixel_format="yuv444p")).shape == (4, 63, 61, 3)


def test_one_frame_is_a_video_and_no_frame_is_none() -> None:
    assert shown(film(FRAMES[7:8])) == [7]
    empty = remuxed(film(FRAMES[:3]), lambda number, packet: False)
    with pytest.raises(EpisodeError, match="video"):
        decode_video(empty)


def test_sound_beside_a_video_is_ignored_and_sound_alone_is_refused() -> None:
    assert shown(film(FRAMES[:20], sound=True)) == list(range(20))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        track = out.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        out.mux(track.encode(silence))
        out.mux(track.encode(None))
    with pytest.raises(EpisodeError, match="no video stream"):
        decode_video(file.getvalue())


def test_a_size_that_changes_midway_is_refused() -> None:
    small, large = (
        film(FRAMES[:5], container="mpegts"),
        film([np.kron(f, np.ones((4, 4, 1), np.uint8)) for f in FRAMES[:5]], container="mpegts"),
    )
    with pytest.raises(EpisodeError, match="changes its size from 64x64 to 256x256"):
        decode_video(small + large)


# --- chosen frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("settings", [{}, {"x264-params": "open-gop=1"}], ids=["closed", "open"])
def test_frames_are_found_by_their_times_wherever_key_frames_lie(b_frames: int, settings: dict) -> None:
    data = film(FRAMES, b_frames=b_frames, settings=settings)
    times = frame_times(data)
    assert np.allclose(times.seconds, np.arange(60) / 30, atol=1e-3)
    rng = np.random.default_rng(b_frames)
    for first in range(0, 60, 5):
        chosen = np.unique(np.append(rng.integers(first, 60, 6), first))
        wanted = replace(times, ticks=times.ticks[chosen])
        assert [numbers(f)[1] for f in read_frames(data, at=wanted).pictures] == chosen.tolist()


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("offset", [-0.9, -1 / 3, -0.1, 0.0, 0.4, 3.0])
def test_times_are_those_of_the_file_where_an_edit_list_begins_inside_a_frame(
    offset: float, b_frames: int
) -> None:
    data = film(FRAMES, times_s=[(n + offset) / 30 for n in range(60)], b_frames=b_frames)
    times = frame_times(data)
    assert np.allclose(times.seconds, (np.arange(60) + offset) / 30, atol=2e-3)
    assert [numbers(f)[1] for f in read_frames(data, at=times).pictures] == list(range(60))


def test_frames_that_an_edit_list_hides_have_no_times() -> None:
    times = frame_times(trimmed(film(FRAMES, b_frames=2), 17))
    assert np.allclose(times.seconds, np.arange(43) / 30, atol=2e-3)


def test_the_rate_is_the_files() -> None:
    assert video_rate(film(FRAMES[:5], rate=Fraction(30000, 1001))) == pytest.approx(30000 / 1001)
