"""RLDS datasets that differ from the plain one: types and encodings, texts as numbers, shared names, missing shards."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from corruption import measured, zlib_bomb
from episode_files import clip, example_bytes, frame_record, png, write_rlds

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.rlds import RldsSource
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.pipelines.cli.main import run

SHARD = "bridge_dataset-train.tfrecord-00000-of-00001"
LENGTH = 4


def tensor(shape: tuple[int, ...], dtype: str, encoding: str = "none") -> dict:
    sizes = [str(size) for size in shape]
    return {"tensor": {"shape": {"dimensions": sizes}, "dtype": dtype, "encoding": encoding}}


def image(channels: int = 3, dtype: str = "uint8") -> dict:
    return {"image": {"shape": {"dimensions": ["32", "48", str(channels)]}, "dtype": dtype}}


def write(folder: Path, features: dict[str, dict], values: dict[str, list]) -> None:
    """A dataset of one record: the plain one with these features of its steps, by path ("observation/left/rgb")."""
    (plain,) = write_rlds(folder, [LENGTH])
    tree = json.loads((folder / "features.json").read_text())
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    for path, feature in features.items():
        *parents, name = path.split("/")
        node = steps
        for parent in parents:
            node = node.setdefault(parent, {"featuresDict": {"features": {}}})["featuresDict"]["features"]
        node[name] = feature
    (folder / "features.json").write_text(json.dumps(tree))
    record = plain | {f"steps/{path}": value for path, value in values.items()}
    (folder / SHARD).write_bytes(frame_record(example_bytes(record)))


def read(folder: Path) -> Episode:
    (item,) = RldsSource(folder).episodes()
    assert isinstance(item, Episode), item
    return item


def reason(folder: Path) -> str:
    (item,) = RldsSource(folder).episodes()
    assert isinstance(item, Quarantined)
    return item.reason


TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float16", "float32", "float64"]
VALUES = np.array([[0, 1, 2], [3, 100, 5], [7, 8, 9], [120, 0, 1]])


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
@pytest.mark.parametrize("dtype", TYPES)
def test_encoded_tensors_of_every_type_are_read(tmp_path, dtype, encoding):
    rows = (VALUES if dtype.startswith("u") else VALUES * [1, -1, 1]).astype(dtype)
    raws = [row.tobytes() if encoding == "bytes" else zlib.compress(row.tobytes()) for row in rows]
    write(tmp_path, {"action": tensor((3,), dtype, encoding)}, {"action": raws})
    assert np.array_equal(read(tmp_path).actions, rows.astype(np.float32))


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_encoded_bfloat16_is_read(tmp_path, encoding):
    rows = torch.randn(LENGTH, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    raws = [row.view(torch.int16).numpy().tobytes() for row in rows]
    raws = [zlib.compress(raw) for raw in raws] if encoding == "zlib" else raws
    write(tmp_path, {"action": tensor((3,), "bfloat16", encoding)}, {"action": raws})
    assert np.array_equal(read(tmp_path).actions, rows.float().numpy())


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_encoded_truth_values_are_0_and_1(tmp_path, encoding):
    raws = [np.array([flag, True]).tobytes() for flag in (True, False, False, True)]
    raws = [zlib.compress(raw) for raw in raws] if encoding == "zlib" else raws
    write(tmp_path, {"observation/state": tensor((2,), "uint8", encoding)}, {"observation/state": raws})
    assert read(tmp_path).state.tolist() == [[1, 1], [0, 1], [0, 1], [1, 1]]


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8"])
def test_negative_and_large_integers_in_lists_are_read(tmp_path, dtype):
    values = [0, -1, 127, 2**31, -(2**31), 300, 5, 6] if dtype == "int64" else [0, 1, 127, 3, 4, 5, 6, 7]
    write(tmp_path, {"action": tensor((2,), dtype)}, {"action": values})
    assert read(tmp_path).actions.ravel().tolist() == [np.float32(value) for value in values]


def test_scalars_and_tensors_of_several_dimensions_are_read_flat(tmp_path):
    values = {"observation/state": [0.5, 1.5, 2.5, 3.5], "action": [float(number) for number in range(4 * 6)]}
    write(tmp_path, {"observation/state": tensor((), "float32"), "action": tensor((2, 3), "float32")}, values)
    episode = read(tmp_path)
    assert episode.state.tolist() == [[0.5], [1.5], [2.5], [3.5]]
    assert episode.actions.shape == (4, 6)


@pytest.mark.parametrize(
    ("feature", "value", "clue"),
    [
        (tensor((0,), "float32"), [], "0 numbers a step"),
        (tensor((-1,), "float32"), [0.0] * 8, "no fixed shape"),
        (tensor((2,), "complex64", "bytes"), [b"x" * 16] * 4, "holds complex64"),
        (tensor((2,), "float32", "lz4"), [b"x" * 8] * 4, "encoding 'lz4'"),
        (tensor((2,), "float32", "bytes"), [b"x" * 7] * 4, "7 bytes at step 0, not 8"),
        (tensor((2,), "float32", "zlib"), [b"no zlib"] * 4, "no zlib stream"),
        (tensor((2,), "float32", "zlib"), [zlib.compress(bytes(8))[:-5]] * 4, "cut short"),
        (tensor((2,), "float32", "zlib"), [zlib.compress(bytes(9))] * 4, "more than the 8 bytes"),
        (tensor((2,), "float32"), [b"bytes"] * 4, "holds bytes"),
        (tensor((2,), "float32"), [], "holds 0 numbers"),
        ({"sequence": {"feature": tensor((2,), "float32")}}, [0.0] * 8, "no fixed shape"),
    ],
)
def test_tensors_that_cannot_be_read_are_a_reason(tmp_path, feature, value, clue):
    write(tmp_path, {"action": feature}, {"action": value})
    assert clue in reason(tmp_path)


def test_a_zlib_field_never_unpacks_to_more_than_features_json_tells(tmp_path):
    bomb = zlib_bomb(300 << 20)
    assert len(bomb) < 1 << 20
    write(tmp_path, {"action": tensor((2,), "float32", "zlib")}, {"action": [bomb] * LENGTH})
    cost = measured(lambda: reason(tmp_path))
    assert "more than the 8 bytes" in cost.result
    assert cost.megabytes < 30


# --- instructions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
@pytest.mark.parametrize("text", ["push the cup", "pousse la tasse à café"])
def test_texts_as_codes_of_bytes_are_read(tmp_path, text, dtype):
    """As Language-Table writes them: bytes of UTF-8, filled up with zeros."""
    codes = list(text.encode()) + [0] * (40 - len(text.encode()))
    feature = {"observation/instruction": tensor((40,), dtype)}
    write(
        tmp_path,
        {"language_instruction": tensor((40,), dtype), **feature},
        {"language_instruction": codes * LENGTH, "observation/instruction": codes * LENGTH},
    )
    assert read(tmp_path).instruction == text


def test_texts_as_codes_of_characters_are_read(tmp_path):
    codes = [ord(char) for char in "推杯子"] + [0] * 5
    write(tmp_path, {"language_instruction": tensor((8,), "int32")}, {"language_instruction": codes * LENGTH})
    assert read(tmp_path).instruction == "推杯子"


def test_numbered_sentences_are_looked_up_in_their_file(tmp_path):
    feature = {"language_instruction": {"classLabel": {"numClasses": "2"}}}
    write(tmp_path, feature, {"language_instruction": [1] * LENGTH})
    (tmp_path / "steps-language_instruction.labels.txt").write_text("push the cup\nstack the cups\n")
    assert read(tmp_path).instruction == "stack the cups"


@pytest.mark.parametrize("feature", [{"classLabel": {"numClasses": "2"}}, tensor((), "int64")])
def test_numbers_without_sentences_are_told(tmp_path, feature):
    write(tmp_path, {"language_instruction": feature}, {"language_instruction": [1] * LENGTH})
    assert read(tmp_path).instruction == ""
    (note,) = RldsSource(tmp_path, fps=5.0).notes
    assert "has no sentences for them" in note


def test_another_wording_is_taken_where_the_first_is_empty(tmp_path):
    text = {"text": {}}
    values = {"language_instruction": [b""] * LENGTH, "language_instruction_2": [b"push"] * LENGTH}
    write(tmp_path, {"language_instruction_2": text}, values)
    assert read(tmp_path).instruction == "push"


def test_a_text_that_only_later_steps_hold_is_taken(tmp_path):
    write(tmp_path, {}, {"language_instruction": [b"", b"", b"push", b"push"]})
    assert read(tmp_path).instruction == "push"


def test_texts_that_are_not_taken_for_instructions_are_told(tmp_path):
    write(tmp_path, {}, {})
    path = tmp_path / "features.json"
    path.write_text(path.read_text().replace("language_instruction", "goal"))
    (note,) = RldsSource(tmp_path, fps=5.0).notes
    assert "steps/goal" in note


def test_what_is_left_out_is_told_by_the_command_also_without_a_bar(tmp_path, capsys):
    write(tmp_path / "set", {"observation/depth": image(1)}, {"observation/depth": [b"x"] * LENGTH})
    words = ["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "out"), "--json", "--quiet"]
    assert run(words) == 0
    assert any("depth" in note for note in json.loads(capsys.readouterr().out)["notes"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [([b"False"], False), ([b"true"], True), ([0], False), ([1], True), ([b"maybe"], None)],
)
def test_success_in_words_is_understood(tmp_path, value, expected):
    (plain,) = write_rlds(tmp_path, [LENGTH])
    record = plain | {"episode_metadata/success": value}
    (tmp_path / SHARD).write_bytes(frame_record(example_bytes(record)))
    assert read(tmp_path).outcome.success is expected


# --- views ------------------------------------------------------------------------------------------------------


def test_two_pictures_of_one_name_are_both_read(tmp_path):
    pictures = {
        view: [png(frame) for frame in clip(LENGTH, tint)] for view, tint in (("left", 1), ("right", 2))
    }
    features = {f"observation/{view}/rgb": image() for view in pictures}
    write(tmp_path, features, {f"observation/{view}/rgb": raws for view, raws in pictures.items()})
    episode = read(tmp_path)
    assert np.array_equal(episode.frames["left.rgb"], clip(LENGTH, 1))
    assert np.array_equal(episode.frames["right.rgb"], clip(LENGTH, 2))
    assert np.array_equal(episode.frames["image_0"], clip(LENGTH))


def test_pictures_whose_paths_read_alike_are_all_read(tmp_path):
    tints = {"left/rgb": 1, "left.rgb": 2, "rgb": 3}
    pictures = {f"observation/{path}": [png(frame) for frame in clip(LENGTH, n)] for path, n in tints.items()}
    write(tmp_path, dict.fromkeys(pictures, image()), pictures)
    frames = read(tmp_path).frames.values()
    assert all(any(np.array_equal(view, clip(LENGTH, n)) for view in frames) for n in tints.values())


@pytest.mark.parametrize("feature", [image(1), image(1, "uint16"), image(3, "uint16"), image(4, "float32")])
def test_depth_maps_are_no_views_and_told(tmp_path, feature):
    write(tmp_path, {"observation/depth": feature}, {"observation/depth": [b"anything"] * LENGTH})
    assert list(read(tmp_path).frames) == ["image_0"]
    assert any("steps/observation/depth" in note for note in RldsSource(tmp_path).notes)


def test_pictures_with_transparency_are_views(tmp_path):
    four = [
        np.concatenate([frame, np.full((*frame.shape[:2], 1), 255, np.uint8)], -1)
        for frame in clip(LENGTH, 2)
    ]
    write(tmp_path, {"observation/cam": image(4)}, {"observation/cam": [png(frame) for frame in four]})
    assert np.array_equal(read(tmp_path).frames["cam"], clip(LENGTH, 2))


# --- shards -----------------------------------------------------------------------------------------------------


def shards(folder: Path, *names: str) -> None:
    write_rlds(folder, [LENGTH])
    raw = (folder / SHARD).read_bytes()
    (folder / SHARD).unlink()
    for name in names:
        (folder / name).write_bytes(raw)


def test_missing_shards_are_listed(tmp_path):
    shards(tmp_path, "bridge-train.tfrecord-00000-of-00003", "bridge-train.tfrecord-00002-of-00003")
    missing, *episodes = RldsSource(tmp_path).episodes()
    assert missing.episode_id == "bridge/train-00001-of-00003"
    assert "missing" in missing.reason
    assert len(episodes) == 2
    assert RldsSource(tmp_path, fps=5.0).notes == ["1 shards are missing, the first is train-00001-of-00003"]


def test_a_rate_that_is_known_by_the_name_alone_is_told(tmp_path):
    shards(tmp_path, SHARD)
    assert any("5 Hz" in note and "bridge" in note for note in RldsSource(tmp_path).notes)
    assert not any("Hz" in note for note in RldsSource(tmp_path, fps=7.0).notes)


def test_several_splits_are_read_side_by_side(tmp_path):
    shards(
        tmp_path,
        "bridge-train.tfrecord-00000-of-00001",
        "bridge-val.tfrecord-00000-of-00001",
        "bridge.tfrecord",
    )
    ids = [item.episode_id for item in RldsSource(tmp_path).episodes()]
    assert len(set(ids)) == 3
    assert all("missing" not in name for name in ids)


def test_a_shard_with_fewer_records_than_stated_is_told(tmp_path):
    shards(tmp_path, SHARD)
    split = {"name": "train", "shardLengths": ["3"]}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"splits": [split, {"name": "val"}]}))
    episode, lost = RldsSource(tmp_path).episodes()
    assert isinstance(episode, Episode)
    assert "holds 1 records, dataset_info.json says 3" in lost.reason
    assert "split 'val' has no shard here" in RldsSource(tmp_path).notes


def test_compressed_shards_and_links_out_of_the_folder_are_refused(tmp_path):
    shards(tmp_path / "set", f"{SHARD}.gz")
    with pytest.raises(UserError, match="compressed shards are not read"):
        RldsSource(tmp_path / "set")
    shutil.move(tmp_path / "set" / f"{SHARD}.gz", tmp_path / SHARD)
    (tmp_path / "set" / SHARD).symlink_to(tmp_path / SHARD)
    with pytest.raises(UserError, match="leads out of the dataset's folder"):
        RldsSource(tmp_path / "set")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "null",
        '{"featuresDict": {"features": []}}',
        '{"featuresDict": {"features": {"steps": 1}}}',
    ],
)
def test_a_broken_features_json_is_one_line(tmp_path, text):
    write_rlds(tmp_path, [LENGTH])
    (tmp_path / "features.json").write_text(text)
    with pytest.raises(UserError, match=r"features\.json"):
        RldsSource(tmp_path)
