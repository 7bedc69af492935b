"""Videos and pictures as attacks: nothing but the file is opened, memory and time are bounded, damage is one line."""

from __future__ import annotations

import io
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from corruption import damaged, measured, png_bomb
from made_videos import film, numbers, picture
from PIL import Image

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.shaping import MOST_FRAME_PIXELS
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.episodes.video import decode_video, video_rate
from roboalign_ray.episodes.video_frames import read_frames

FRAMES = [picture(0, t) for t in range(20)]
SECRET = "nobody may read this"


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port of this machine, and what connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        came: list[object] = []
        over = threading.Event()

        def wait() -> None:
            while not over.is_set():
                try:
                    came.append(server.accept()[1])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=wait)
        thread.start()
        yield server.getsockname()[1], came
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "source",
    [
        "http://127.0.0.1:{port}/video.mp4",
        "concat:{secret}|{secret}",
        "data:video/mp4;base64,AAAA",
        "file:{secret}",
        "{secret}",
        "tcp://127.0.0.1:{port}?listen",
        None,
        7,
        ["{secret}"],
    ],
)
def test_only_bytes_and_paths_are_videos(source: object, listener, tmp_path: Path) -> None:
    port, came = listener
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    if isinstance(source, str):
        source = source.format(port=port, secret=secret)
    for read in (decode_video, video_rate):
        with pytest.raises(EpisodeError, match="not a file's bytes") as told:
            read(source)  # type: ignore[arg-type]
        assert "\n" not in told.value.line()
    assert came == []


TEXTS = {
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video {port} RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\n",
    "ffconcat": "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.mp4'\nfile '{video}'\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "m3u": "#EXTM3U\n{video}\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation><BaseURL>http://127.0.0.1:{port}/</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "xspf": "<smil><body><video src='http://127.0.0.1:{port}/a.mp4'/></body></smil>",
    "asx": "[Reference]\nRef1=http://127.0.0.1:{port}/a.asf\n",
    "rtsp": "RTSPtext\nrtsp://127.0.0.1:{port}/a.mp4\n",
    "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1:{port}/a.png'/></svg>",
    "txt": SECRET,
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_name_other_files_or_hosts_are_refused(kind: str, listener, tmp_path: Path) -> None:
    port, came = listener
    video = tmp_path / "private.mp4"
    video.write_bytes(film(FRAMES[:3]))
    text = TEXTS[kind].format(port=port, video=video).encode()
    path = tmp_path / f"video.{kind}"
    path.write_bytes(text)
    threads = threading.active_count()
    for source in (text, path):
        with pytest.raises(EpisodeError) as told:
            decode_video(source)
        assert "\n" not in told.value.line()
        assert SECRET not in told.value.line()
    assert came == []
    assert threading.active_count() == threads


@pytest.mark.parametrize("name", ["concat:a|b.mp4", "frame%03d.mp4", "http:", "video.sdp", "-i"])
def test_a_files_name_means_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(film(FRAMES[:4]))
    assert [numbers(frame)[1] for frame in decode_video(Path(name))] == [0, 1, 2, 3]


def test_pictures_and_other_containers_are_no_videos(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(FRAMES[3]).save(file, "PNG")
    (tmp_path / "a001.png").write_bytes(file.getvalue())
    (tmp_path / "a%03d.png").write_bytes(file.getvalue())
    for source in (file.getvalue(), tmp_path / "a%03d.png", film(FRAMES[:3], container="flv")):
        with pytest.raises(EpisodeError, match="video cannot be decoded"):
            decode_video(source)


def test_a_codec_that_is_not_on_the_list_is_named() -> None:
    with pytest.raises(EpisodeError, match="codec 'cinepak' is not read"):
        decode_video(film(FRAMES[:3], codec="cinepak", container="mov", pixel_format="rgb24"))


def test_a_reference_to_samples_in_another_file_is_not_followed(listener, tmp_path: Path) -> None:
    """ISO 14496-12: a data reference of kind "url " without the flag "in this file" names another one."""
    port, came = listener
    other = tmp_path / "other.mp4"
    other.write_bytes(film([picture(1, 99)] * 20))
    data = film(FRAMES)
    for address in (f"http://127.0.0.1:{port}/a.mp4", str(other), other.as_uri()):
        reference = address.encode() + b"\0"
        url = struct.pack(">I4sI", 12 + len(reference), b"url ", 0) + reference
        shown = decode_video(_grown(data, b"url ", url))
        assert [numbers(frame) for frame in shown] == [(0, t) for t in range(20)]  # of the file itself
    assert came == []


def _grown(data: bytes, kind: bytes, box: bytes) -> bytes:
    """The mp4 with its box of that kind replaced, the boxes around it made longer; its frames come before them."""
    start = data.index(kind, data.index(b"dref")) - 4
    old = int.from_bytes(data[start : start + 4], "big")
    changed = bytearray(data[:start] + box + data[start + old :])
    for outer in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = changed.index(outer) - 4
        size = int.from_bytes(changed[place : place + 4], "big") + len(box) - old
        changed[place : place + 4] = size.to_bytes(4, "big")
    return bytes(changed)


# --- size and time ----------------------------------------------------------------------------------------------


def _flat_film(frames: int, height: int, width: int, codec: str = "libx264") -> bytes:
    """Frames of one colour, all one picture: a few bytes a frame."""
    grey = np.full((height, width, 3), 90, np.uint8)
    return film([grey] * frames, codec=codec, settings={"preset": "ultrafast"}, key_every=10_000)


def test_a_video_that_would_fill_the_memory_is_refused_before_it_is_decoded() -> None:
    data = _flat_film(300, 1024, 1024)
    assert len(data) < 400_000
    cost = measured(lambda: decode_video(data))
    assert isinstance(cost.error, EpisodeError)
    assert "300 frames of 1024x1024 hold more than" in cost.error.line()
    assert cost.megabytes < 100


def test_limits_hold_where_the_container_does_not_tell_the_number_of_frames() -> None:
    data = film([FRAMES[0]] * 200, container="matroska")
    with pytest.raises(EpisodeError, match="hold more than the 400000 pixels allowed"):
        decode_video(data, most_pixels=400_000)
    assert len(decode_video(data, most_pixels=64 * 64 * 200)) == 200


def test_a_frame_larger_than_any_camera_is_refused() -> None:
    data = _flat_film(2, 4096, 4096)
    cost = measured(lambda: decode_video(data))
    assert isinstance(cost.error, EpisodeError)
    assert cost.megabytes < 150
    assert MOST_FRAME_PIXELS < 4096 * 4096


def test_decoding_ends_after_the_frames_that_are_expected() -> None:
    data = film(FRAMES * 10, container="matroska")
    kept = read_frames(data, most_frames=5)
    assert kept.count > 5
    assert len(kept.pictures) == 6


def test_decoding_has_a_deadline() -> None:
    with pytest.raises(EpisodeError, match="takes too long"):
        read_frames(film(FRAMES), most_seconds=-1.0)


@pytest.mark.parametrize("table", [b"stsz", b"stts"])
def test_tables_that_name_more_samples_than_the_file_holds_are_refused(table: bytes) -> None:
    """FFmpeg builds an index of all samples that are named: 500 million take 12 GB."""
    data = bytearray(film(FRAMES))
    place = data.index(table) + 4
    # After version and flags: for stsz the size of all samples and their number, for stts one run of that many.
    struct.pack_into(">II", data, place + 4, 1, 500_000_000)
    cost = measured(lambda: decode_video(bytes(data)))
    assert isinstance(cost.error, EpisodeError)
    assert "tables name" in cost.error.line()
    assert cost.megabytes < 50


def test_a_compressed_index_and_endless_edits_are_refused() -> None:
    data = film(FRAMES)
    packed = data.replace(b"mvhd", b"cmov", 1)
    with pytest.raises(EpisodeError, match="index is compressed"):
        decode_video(packed)
    changed = bytearray(data)
    place = changed.index(b"elst") + 8
    struct.pack_into(">I", changed, place, 1_000_000)
    with pytest.raises(EpisodeError, match="video"):
        decode_video(bytes(changed))


KINDS = {
    "mp4": {},
    "trimmed": {"b_frames": 2},
    "fragments": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc": {"codec": "libx265", "settings": {"x265-params": "log-level=none"}},
    "av1": {"codec": "libsvtav1"},
    "mpeg4": {"codec": "mpeg4", "container": "avi"},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "mkv": {"container": "matroska"},
    "ts": {"container": "mpegts"},
    "ffv1": {"codec": "ffv1", "container": "matroska", "pixel_format": "bgr0"},
    "mjpeg": {"codec": "mjpeg", "container": "mov", "pixel_format": "yuvj420p"},
    "png": {"codec": "png", "container": "mov", "pixel_format": "rgb24"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_videos_are_read_or_refused_in_a_line_at_bounded_cost(kind: str) -> None:
    assert_damage_is_told(film(FRAMES, **KINDS[kind]), decode_video, 60)


def assert_damage_is_told(data: bytes, read: Callable[[bytes], np.ndarray], files: int) -> None:
    """Spoil a file in many ways; every reading ends in frames or in one line, soon, and in little memory."""
    rng = random.Random(len(data))

    def read_all() -> None:
        for number in range(files):
            way, spoiled = damaged(data, rng)
            started = time.process_time()
            try:
                result = read(spoiled)
            except EpisodeError as error:
                told = error.line()
            except Exception as error:
                raise AssertionError(f"file {number}, {way}") from error
            else:
                told = ""
                assert result.dtype == np.uint8
                assert result.size
            assert "\n" not in told
            assert time.process_time() - started < 5, f"file {number}, {way}"

    cost = measured(read_all)
    assert cost.error is None, cost.error
    assert cost.megabytes < 512


# --- pictures ---------------------------------------------------------------------------------------------------


def _encoded(array: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_pictures_come_back_exactly(kind: str) -> None:
    assert np.array_equal(decode_picture(_encoded(FRAMES[5], kind), "a"), FRAMES[5])


def test_sixteen_bits_become_the_nearest_of_eight() -> None:
    levels = np.array([[0, 1, 128, 129, 257, 1000, 32767, 32768, 65278, 65406, 65407, 65535]], np.uint16)
    expected = np.round(levels / 65535 * 255).astype(np.uint8)
    decoded = decode_picture(_encoded(levels, "PNG"), "a")
    assert decoded.shape == (1, 12, 3)
    assert all(np.array_equal(decoded[..., channel], expected) for channel in range(3))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_other_kinds_of_pixels_become_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    decoded = decode_picture(_encoded(FRAMES[5], kind, mode), "a")
    assert (decoded.shape, decoded.dtype) == ((64, 64, 3), np.uint8)
    assert numbers(decoded) == (0, 5)


def test_bombs_are_refused_by_their_header() -> None:
    for data in (png_bomb(8000, 8000), _encoded(np.zeros((5000, 5000), np.uint8), "JPEG")):
        cost = measured(lambda data=data: decode_picture(data, "front[0]"))
        assert isinstance(cost.error, EpisodeError)
        assert "front[0]" in cost.error.line()
        assert "larger than" in cost.error.line()
        assert cost.megabytes < 20


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO", "PCX", "TGA"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(EpisodeError, match="none of PNG, JPEG, WEBP, BMP"):
        decode_picture(_encoded(FRAMES[5], kind), "a")


@pytest.mark.parametrize("data", ["http://127.0.0.1/a.png", None, 5, {"bytes": b""}])
def test_only_bytes_are_pictures(data: object) -> None:
    with pytest.raises(EpisodeError, match="not bytes"):
        decode_picture(data, "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_pictures_are_read_or_refused_in_a_line_at_bounded_cost(kind: str) -> None:
    assert_damage_is_told(_encoded(FRAMES[5], kind), lambda data: decode_picture(data, "a"), 150)
