"""TFRecord framing, tf.train.Example and RLDS against Google's protobuf, bitwise checksums and the raw bytes."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import pytest
from episode_files import EXAMPLE, clip, example_bytes, frame_record, slow_masked_crc, write_rlds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.sources.base import EpisodeSource, Quarantined
from roboalign_ray.episodes.sources.rlds import RldsSource
from roboalign_ray.episodes.sources.tfrecord import (
    CorruptRecord,
    crc32c,
    masked_crc32c,
    parse_example,
    read_records,
    write_records,
)
from roboalign_ray.foundation.failures import UserError

SHARD = "bridge_dataset-train.tfrecord-00000-of-00001"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),  # the check value of the CRC catalogue
        (bytes(32), 0x8A9136AA),  # RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_gives_the_published_values(data, expected):
    assert crc32c(data) == expected


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=1200))
def test_crc32c_in_lanes_equals_the_bitwise_one(data):
    assert masked_crc32c(data) == slow_masked_crc(data)


@settings(max_examples=30, deadline=None)
@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=3))
def test_written_records_are_framed_as_the_format_says_and_read_back(payloads, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    write_records(path, payloads)
    assert path.read_bytes() == b"".join(map(frame_record, payloads))
    assert list(read_records(path)) == payloads


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_is_always_noticed(data, tmp_path_factory):
    payloads = [b"first record", b"second, longer record", b"third"]
    raw = bytearray(b"".join(map(frame_record, payloads)))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    path.write_bytes(raw)
    records = list(read_records(path))
    corrupt = [record for record in records if isinstance(record, CorruptRecord)]
    assert len(corrupt) == 1
    if not corrupt[0].ends_file:  # damage inside one payload leaves the others as they were
        good = [payload for number, payload in enumerate(payloads) if number != corrupt[0].index]
        assert [record for record in records if isinstance(record, bytes)] == good


def test_a_file_cut_short_keeps_the_records_before_the_cut(tmp_path):
    raw = frame_record(b"whole") + frame_record(b"cut in the middle")
    path = tmp_path / "a.tfrecord"
    for cut, clue in ((len(raw) - 3, "ends inside a record"), (len(frame_record(b"whole")) + 5, "header")):
        path.write_bytes(raw[:cut])
        first, second = read_records(path)
        assert first == b"whole"
        assert second.ends_file
        assert clue in second.reason


names = st.text(min_size=1, max_size=12)
values = st.one_of(
    st.lists(st.binary(max_size=20), min_size=1, max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, values, max_size=5))
def test_examples_written_by_googles_protobuf_are_read_alike(features):
    parsed = parse_example(example_bytes(features))
    assert set(parsed) == set(features)
    for name, expected in features.items():
        found = parsed[name]
        assert (found if isinstance(found, list) else found.tolist()) == expected


def test_integers_that_are_not_packed_are_read():
    values_1_to_3 = b"".join(b"\x08" + bytes([number]) for number in (1, 2, 3))
    feature = b"\x1a" + bytes([len(values_1_to_3)]) + values_1_to_3
    entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    message = b"\x0a" + bytes([len(features)]) + features
    assert EXAMPLE.FromString(message).features.feature["x"].int64_list.value == [1, 2, 3]
    assert parse_example(message)["x"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("payload", [b"\x0a\xff", b"\xff" * 12, b"\x0b", b"\x0a\x05hello"])
def test_bytes_that_are_no_example_are_refused(payload):
    with pytest.raises(EpisodeError, match=r"not a tf\.train\.Example"):
        parse_example(payload)


def test_episodes_hold_what_was_written(tmp_path):
    written = write_rlds(tmp_path, [6, 9, 4])
    source = RldsSource(tmp_path)
    assert isinstance(source, EpisodeSource)
    episodes = list(source.episodes())
    assert [episode.length for episode in episodes] == [6, 9, 4]
    for number, (episode, features) in enumerate(zip(episodes, written, strict=True)):
        assert np.array_equal(episode.actions.ravel(), np.float32(features["steps/action"]))
        assert np.array_equal(episode.state.ravel(), np.float32(features["steps/observation/state"]))
        assert list(episode.frames) == ["image_0"]  # the second view is black throughout
        assert np.array_equal(episode.frames["image_0"], clip(episode.length, number))
        assert episode.provenance["views_without_picture"] == ["image_1"]
        assert (episode.instruction, episode.fps, episode.embodiment) == (f"task {number}", 5.0, "widowx")
    assert episodes[0].group_id == episodes[1].group_id != episodes[2].group_id  # by recording file
    assert len({episode.episode_id for episode in episodes}) == 3


def test_a_damaged_record_is_quarantined_and_the_rest_goes_on(tmp_path):
    write_rlds(tmp_path, [4, 4, 4])
    shard = tmp_path / SHARD
    raw = bytearray(shard.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    raw[16 + length + 200] ^= 0xFF  # inside the second payload
    shard.write_bytes(raw)
    first, second, third = RldsSource(tmp_path).episodes()
    assert isinstance(first, Episode)
    assert isinstance(third, Episode)
    assert isinstance(second, Quarantined)
    assert SHARD in second.reason
    assert "checksum" in second.reason
    assert second.episode_id.endswith("/000001")


@pytest.mark.parametrize(
    ("change", "clue"),
    [
        ({"steps/action": [float("nan")] * 28}, "finite"),
        ({"steps/action": [0.0] * 27}, "not a multiple of 7"),
        ({"steps/action": [0.0] * 21}, "4 frames for 3 actions"),
        ({"steps/observation/state": [0.0] * 6}, "2 states for 4 frames"),
        ({"steps/observation/image_0": [b"no picture"] * 4}, r"image_0\[0\] cannot be decoded"),
        ({"steps/observation/image_0": []}, "no view holds a picture"),
    ],
)
def test_an_episode_that_contradicts_itself_is_quarantined(tmp_path, change, clue):
    (features,) = write_rlds(tmp_path, [4])
    (tmp_path / SHARD).write_bytes(frame_record(example_bytes(features | change)))
    (item,) = RldsSource(tmp_path).episodes()
    assert isinstance(item, Quarantined)
    assert re.search(clue, item.reason), item.reason


def test_a_dataset_of_unknown_rate_must_be_told_it(tmp_path):
    write_rlds(tmp_path, [4], name="my_own")
    with pytest.raises(UserError, match="--source-fps"):
        RldsSource(tmp_path)
    (episode,) = RldsSource(tmp_path, fps=12.5).episodes()
    assert episode.fps == 12.5


def test_real_bridge_episodes_equal_the_raw_file(real_data):
    """Framing by struct, message by Google's protobuf, pictures by PIL: nothing shared with the reader."""
    raw = (real_data / "bridge_rlds" / SHARD).read_bytes()
    episodes = list(RldsSource(real_data / "bridge_rlds").episodes())
    assert len(episodes) == 25
    position = 0
    for episode in episodes:
        (length,) = struct.unpack("<Q", raw[position : position + 8])
        feature = EXAMPLE.FromString(raw[position + 12 : position + 12 + length]).features.feature
        position += 16 + length
        assert episode.actions.ravel().tolist() == list(feature["steps/action"].float_list.value)
        assert episode.state.ravel().tolist() == list(feature["steps/observation/state"].float_list.value)
        assert episode.instruction.encode() == feature["steps/language_instruction"].bytes_list.value[0]
        assert list(episode.frames) == ["image_0", "image_1", "image_2"]
        for view, frames in episode.frames.items():
            pictures = feature[f"steps/observation/{view}"].bytes_list.value
            assert len(pictures) == episode.length == 10
            assert np.array_equal(frames[-1], np.asarray(Image.open(io.BytesIO(pictures[-1]))))
    assert position == len(raw)
