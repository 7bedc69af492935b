"""LeRobot datasets that differ from the plain one: task tables, pictures by path, shared names, bad rows, links."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corruption import measured
from episode_files import CAMERA, clip, lerobot_info, lerobot_rows, png, write_lerobot_v2, write_lerobot_v3

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.parquet import read_columns
from roboalign_ray.foundation.storage.parquet_pages import page_sizes
from roboalign_ray.pipelines.episodes.convert import ConvertOptions, convert

DATA = "data/chunk-000/episode_000000.parquet"
V3_DATA = "data/chunk-000/file-000.parquet"
V3_TABLE = "meta/episodes/chunk-000/file-000.parquet"
FEATURE = "observation.images"


def read(folder: Path) -> list[Episode | Quarantined]:
    return list(LeRobotSource(folder).episodes())


def reason(folder: Path) -> str:
    """Why the one episode that is set aside is set aside."""
    (bad,) = [item.reason for item in read(folder) if isinstance(item, Quarantined)]
    return bad


def change_info(folder: Path, **values) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_features(folder: Path, **features) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    change_info(folder, features=info["features"] | features)


def change_columns(path: Path, **columns) -> None:
    """Replace columns of a Parquet file, or add them."""
    table = pq.read_table(path)
    for name, values in columns.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, array)
    pq.write_table(table, path)


def v3(folder: Path, tasks: tuple[int, ...] = (1, 0)) -> None:
    lerobot_info(folder, "v3.0", len(tasks))
    rows = [lerobot_rows(number, 4) | {"task_index": [task] * 4} for number, task in enumerate(tasks)]
    write_lerobot_v3(folder, [clip(4, number) for number in range(len(tasks))], rows)


# --- instructions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["task", "__index_level_0__", "sentence", "category"])
def test_v3_without_tasks_takes_the_sentence_from_the_rows_and_the_task_table(tmp_path, column):
    v3(tmp_path)
    table = pq.read_table(tmp_path / V3_TABLE)
    pq.write_table(table.drop_columns(["tasks"]), tmp_path / V3_TABLE)
    sentences = pa.array([" stack the cups ", "push"])
    sentences = sentences.dictionary_encode() if column == "category" else sentences
    tasks = pa.table({"task_index": [1, 0], column: sentences})
    pq.write_table(tasks, tmp_path / "meta/tasks.parquet")
    assert [episode.instruction for episode in read(tmp_path)] == ["stack the cups", "push"]


def test_v2_without_tasks_takes_the_sentence_from_the_rows_and_the_task_table(tmp_path):
    write_lerobot_v2(tmp_path, [4, 4])
    rows = [{"episode_index": number, "length": 4} for number in range(2)]
    (tmp_path / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "meta/tasks.jsonl").write_text(
        '{"task_index": 0, "task": "stack"}\n{"task_index": 1, "task": "push"}\n'
    )
    assert [episode.instruction for episode in read(tmp_path)] == ["stack", "push"]


def test_numbers_in_the_episode_table_are_looked_up(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4, "tasks": [1]}')
    (tmp_path / "meta/tasks.jsonl").write_text('{"task_index": 1, "task": "push"}')
    assert read(tmp_path)[0].instruction == "push"


def test_several_tasks_in_the_rows_are_noted_and_the_first_is_the_instruction(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    change_columns(tmp_path / DATA, task_index=[1, 1, 0, 0])
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}')
    (tmp_path / "meta/tasks.jsonl").write_text(
        '{"task_index": 0, "task": "stack"}\n{"task_index": 1, "task": "push"}\n'
    )
    (episode,) = read(tmp_path)
    assert episode.instruction == "push"
    assert episode.provenance["tasks"] == ["push", "stack"]


@pytest.mark.parametrize("end", ["\u2028", "\x85"])
def test_ends_of_lines_inside_a_sentence_are_part_of_it(tmp_path, end):
    write_lerobot_v2(tmp_path, [4, 4])
    rows = [
        {"episode_index": 0, "length": 4, "tasks": [f"lift{end}it"]},
        {"episode_index": 1, "length": 4, "tasks": [1]},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "meta/episodes.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    task = json.dumps({"task_index": 1, "task": f"push{end}it"}, ensure_ascii=False)
    (tmp_path / "meta/tasks.jsonl").write_text(task, encoding="utf-8")
    assert [episode.instruction for episode in read(tmp_path)] == [f"lift{end}it", f"push{end}it"]


def test_half_a_character_costs_its_episode_alone(tmp_path):
    write_lerobot_v2(tmp_path, [4, 4])
    rows = [
        {"episode_index": 0, "length": 4, "tasks": ["lift \ud800"]},
        {"episode_index": 1, "length": 4, "tasks": ["push"]},
    ]
    (tmp_path / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "its instruction holds half a character" in reason(tmp_path)
    convert(tmp_path, tmp_path.with_name("store"), ConvertOptions())
    assert [open_store(tmp_path.with_name("store")).read(0).instruction] == ["push"]


def test_task_numbers_may_stand_in_lists_of_one(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    change_columns(tmp_path / DATA, task_index=[[1]] * 4)
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}')
    (tmp_path / "meta/tasks.jsonl").write_text('{"task_index": 1, "task": "push"}')
    assert read(tmp_path)[0].instruction == "push"


def test_a_missing_task_table_is_told(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    (tmp_path / "meta/tasks.jsonl").unlink(missing_ok=True)
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}')
    assert read(tmp_path)[0].instruction == ""
    assert any("no task table" in note for note in LeRobotSource(tmp_path).notes)


def test_a_task_number_without_a_sentence_is_a_reason(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    (tmp_path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}')
    (tmp_path / "meta/tasks.jsonl").write_text('{"task_index": 7, "task": "push"}')
    assert "task_index 0 is not in the task table" in reason(tmp_path)


# --- views ------------------------------------------------------------------------------------------------------


def test_two_cameras_of_one_name_are_both_read(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    change_features(
        tmp_path,
        **{"observation.front": {"dtype": "video", "shape": [32, 48, 3]}},
    )
    folder = tmp_path / "videos/chunk-000"
    shutil.copytree(folder / CAMERA, folder / "observation.front")
    source = LeRobotSource(tmp_path)
    (episode,) = source.episodes()
    assert set(episode.frames) == {CAMERA, "observation.front"} == set(source.view_names)


@pytest.mark.parametrize(
    "feature",
    [
        {"dtype": "video", "info": {"is_depth_map": True}},
        {"dtype": "video", "info": {"video.is_depth_map": True}},
        {"dtype": "video", "video_info": {"video.pix_fmt": "gray16le"}},
        {"dtype": "image", "shape": [32, 48, 1]},
        {"dtype": "image", "shape": [1, 32, 48]},
    ],
)
def test_depth_maps_are_left_out_and_told(tmp_path, feature):
    write_lerobot_v2(tmp_path, [4])
    change_features(tmp_path, **{f"{FEATURE}.depth": feature})
    source = LeRobotSource(tmp_path)
    assert list(source.view_names) == ["front"]
    assert source.notes == [f"{FEATURE}.depth: a depth map, left out"]


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("how", ["bytes", "struct with bytes", "struct with path", "path"])
def test_pictures_of_a_table_are_read_however_they_stand_there(tmp_path, how):
    write_lerobot_v2(tmp_path, [5])
    change_features(tmp_path, **{CAMERA: {"dtype": "image", "shape": [32, 48, 3]}})
    (tmp_path / "images").mkdir()
    names, raws = [], [png(frame) for frame in clip(5)]
    for number, raw in enumerate(raws):
        names.append(f"images/frame_{number:06d}.png")
        (tmp_path / names[-1]).write_bytes(raw)
    column = {
        "bytes": pa.array(raws),
        "struct with bytes": pa.array([{"bytes": raw, "path": "gone.png"} for raw in raws], STRUCT),
        "struct with path": pa.array([{"bytes": None, "path": name} for name in names], STRUCT),
        "path": pa.array(names),
    }[how]
    change_columns(tmp_path / DATA, **{CAMERA: column})
    (episode,) = read(tmp_path)
    assert np.array_equal(episode.frames["front"], clip(5))


@pytest.mark.parametrize(
    ("path", "clue"),
    [
        ("images/gone.png", "no such picture"),
        ("../secret.png", "leads out of the dataset's folder"),
        ("/etc/hostname", "leads out of the dataset's folder"),
    ],
)
def test_a_picture_that_is_not_in_the_folder_is_named(tmp_path, path, clue):
    folder = tmp_path / "set"
    write_lerobot_v2(folder, [3])
    (tmp_path / "secret.png").write_bytes(png(clip(1)[0]))
    change_features(folder, **{CAMERA: {"dtype": "image", "shape": [32, 48, 3]}})
    change_columns(folder / DATA, **{CAMERA: [path] * 3})
    said = reason(folder)
    assert clue in said
    assert path in said
    assert "into the table" in said


# --- rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "clue"),
    [
        ({"frame_index": [0, 1, 1, 3]}, "frame_index 1 stands in two rows"),
        ({"frame_index": [0, 1, 3, 4]}, "frame_index skips from 1 to 3"),
        ({"frame_index": [2, 3, 4, 5]}, "frame_index begins at 2"),
        ({"frame_index": ["0", "1", "2", "3"]}, "'frame_index' holds no whole numbers"),
        ({"timestamp": [0.0, 1 / 30, 2 / 30, 3 / 30]}, "timestamps tell 30 Hz, info.json says fps 10"),
        ({"timestamp": [0.0, 0.0, 0.0, 0.0]}, "timestamps tell no rate"),
        ({"timestamp": [0.0, 0.1, 0.1, 0.3]}, "step by 0 s from row 1 to 2"),
        ({"timestamp": [0.3, 0.2, 0.1, 0.0]}, "timestamps tell no rate"),
        ({"action": ["1.0"] * 4}, "'action' is no table of numbers"),
        ({"action": [[1.0, 2.0], [1.0], [1.0], [1.0]]}, "rows of 2 and of 1"),
        ({"action": [[1.0], [None], [1.0], [1.0]]}, "1 values are missing"),
        ({"action": [[1.0], None, [1.0], [1.0]]}, "1 values are missing"),
        ({"action": [[1.0], [1e300], [1.0], [1.0]]}, "'action' holds inf at row 1"),
        ({"action": pa.array([[]] * 4, pa.list_(pa.float32()))}, "0 numbers in 4 rows"),
        ({"episode_index": [0, 0, 0, 1]}, "3 rows, the episode table says 4"),
    ],
)
def test_rows_that_contradict_themselves_are_a_reason(tmp_path, columns, clue):
    write_lerobot_v2(tmp_path, [4])
    change_columns(tmp_path / DATA, **columns)
    assert clue in reason(tmp_path)


TABLE = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.mark.parametrize("fps", [10, 10.5, 9])
def test_jitter_of_a_short_episode_is_no_other_rate_and_another_rate_is_no_jitter(tmp_path, fps):
    write_lerobot_v2(tmp_path, [16])
    jitter = 0.2 * np.where(np.arange(16) % 3, 1, -1)  # frames; late at the end, early at the beginning
    jitter[-1] = 0.2
    change_columns(tmp_path / DATA, timestamp=(np.arange(16) + jitter) / fps)
    if fps == 10:
        assert len(read(tmp_path)[0].actions) == 16
    else:
        change_columns(tmp_path / DATA, timestamp=(np.arange(16) + jitter / 10) / fps)
        assert "timestamps tell" in reason(tmp_path)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(list(TABLE), pa.list_(pa.float32(), 2)), TABLE),
        (pa.array([row.tolist() for row in TABLE], pa.large_list(pa.float64())), TABLE),
        (pa.array([[row.tolist()] for row in TABLE], pa.list_(pa.list_(pa.float32()))), TABLE),
        (pa.array([1.5, 2.5, 3.5, 4.5]), np.float32([[1.5], [2.5], [3.5], [4.5]])),
        (pa.array([3, -1, 0, 7], pa.int8()), np.float32([[3], [-1], [0], [7]])),
        (pa.array([[True], [False], [True], [True]]), np.float32([[1], [0], [1], [1]])),
        (pa.array(np.float16([1, 2, 3, 4])), np.float32([[1], [2], [3], [4]])),
    ],
    ids=["fixed lists", "large lists", "nested lists", "scalars", "int8", "bool", "float16"],
)
def test_columns_of_numbers_are_read_whatever_their_type(tmp_path, column, expected):
    write_lerobot_v2(tmp_path, [4])
    change_columns(tmp_path / DATA, action=column)
    (episode,) = read(tmp_path)
    assert np.array_equal(episode.actions, expected)


def test_row_groups_of_other_episodes_do_not_matter(tmp_path):
    v3(tmp_path, (0, 1, 0))
    whole = read(tmp_path)
    table = pq.read_table(tmp_path / V3_DATA)
    pq.write_table(table, tmp_path / V3_DATA, row_group_size=3)
    for one, other in zip(whole, read(tmp_path), strict=True):
        assert np.array_equal(one.actions, other.actions)


# --- the episode table ------------------------------------------------------------------------------------------


def test_a_broken_line_of_the_table_costs_that_line(tmp_path):
    write_lerobot_v2(tmp_path, [4, 4, 4])
    path = tmp_path / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    for broken in ('{"episode_index": 1', "[" * 100_000, '{"episode_index": 1e999, "length": 4}', "[1]"):
        path.write_text("\n".join([lines[0], broken, lines[2]]))
        bad, first, third = read(tmp_path)
        assert isinstance(bad, Quarantined)
        assert "meta/episodes.jsonl line 2" in bad.reason
        assert [first.episode_id[-1], third.episode_id[-1]] == ["0", "2"]


def test_an_episode_that_stands_twice_is_kept_once_where_both_are_equal(tmp_path):
    write_lerobot_v2(tmp_path, [4, 4])
    path = tmp_path / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[0], lines[1]]))
    bad, *good = read(tmp_path)
    assert "episode_index 0 occurs 2 times" in bad.reason
    assert [episode.episode_id[-1] for episode in good] == ["0", "1"]


def test_episodes_that_share_a_number_and_differ_are_all_set_aside(tmp_path):
    write_lerobot_v2(tmp_path, [4, 4])
    path = tmp_path / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0].replace("task 0", "another")]))
    *bad, good = read(tmp_path)
    assert len(bad) == 2
    assert good.instruction == "task 1"


def test_a_table_of_other_length_than_info_json_says_is_told(tmp_path):
    write_lerobot_v2(tmp_path, [4, 4])
    change_info(tmp_path, total_episodes=3)
    assert LeRobotSource(tmp_path).notes == ["info.json counts 3 episodes, the episode table 2"]


# --- paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["data_path", "video_path"])
@pytest.mark.parametrize(
    "place",
    [
        "{episode_index:0999999999d}",
        "{episode_index.__class__}",
        "{episode_index!r}",
        "{episode_index:{episode_chunk}}",
        "{0}",
        "{}",
        "{nothing}",
        "{episode_index",
    ],
)
def test_templates_of_paths_take_plain_numbers_only(tmp_path, key, place):
    write_lerobot_v2(tmp_path, [4])
    change_info(tmp_path, **{key: f"data/{place}.parquet"})

    def opening():
        with pytest.raises(UserError, match=key) as raised:
            LeRobotSource(tmp_path)
        return raised.value.line()

    cost = measured(opening)
    assert cost.error is None
    assert cost.megabytes < 50


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "../outside.mp4",
        "videos/../../outside.mp4",
        "..\\outside.mp4",
        "C:\\outside.mp4",
        "a\0b",
    ],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "set"
    write_lerobot_v2(folder, [4])
    video = next((folder / "videos").rglob("*.mp4"))
    shutil.copy(video, tmp_path / "outside.mp4")
    change_info(folder, video_path=name)
    (item,) = read(folder)
    assert isinstance(item, Quarantined)


@pytest.mark.parametrize(
    ("version", "template"),
    [
        ("v2.1", "videos/chunk-000/{video_key}/episode_000000.mp4"),
        ("v2.1", "videos/chunk-000/episode_{episode_index:06d}.mp4"),
        ("v3.0", "videos/{video_key}/chunk-{chunk_index:03d}/file-000.mp4"),
        ("v3.0", "videos/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
    ],
)
def test_a_template_that_gives_one_video_to_several_is_refused(tmp_path, version, template):
    if version == "v2.1":
        write_lerobot_v2(tmp_path, [4, 4])
    else:
        v3(tmp_path)
        change_columns(tmp_path / V3_TABLE, **{f"videos/{CAMERA}/file_index": [0, 1]})
        table = pq.read_table(tmp_path / V3_TABLE)
        second = {
            name.replace(CAMERA, "observation.front"): table[name].to_pylist()
            for name in table.column_names
            if name.startswith(f"videos/{CAMERA}/")
        }
        change_columns(tmp_path / V3_TABLE, **second)
    change_features(tmp_path, **{"observation.front": {"dtype": "video"}})
    change_info(tmp_path, video_path=template)
    with pytest.raises(UserError, match="names the same file for different videos"):
        LeRobotSource(tmp_path)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path):
    folder = tmp_path / "set"
    write_lerobot_v2(folder, [4, 4])
    first, second = sorted((folder / "videos").rglob("*.mp4"))
    shutil.move(first, tmp_path / "outside.mp4")
    first.symlink_to(tmp_path / "outside.mp4")
    shutil.move(second, folder / "inside.mp4")
    second.symlink_to(folder / "inside.mp4")
    bad, good = read(folder)
    assert "link that leads out of the dataset's folder" in bad.reason
    assert isinstance(good, Episode)


def test_a_loop_of_links_is_a_reason(tmp_path):
    write_lerobot_v2(tmp_path, [4])
    video = next((tmp_path / "videos").rglob("*.mp4"))
    video.unlink()
    video.symlink_to(video)
    assert "no such video file" in reason(tmp_path)


def test_a_snapshot_of_the_hugging_face_cache_is_read_through_its_links(tmp_path):
    """There every file is a link from snapshots/<revision>/ into blobs/."""
    plain = tmp_path / "plain"
    write_lerobot_v2(plain, [4])
    repository = tmp_path / "hub/datasets--somebody--cups"
    snapshot = repository / "snapshots/0123abcd"
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in plain.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repository / f"blobs/{number}")
        link.symlink_to(os.path.relpath(repository / f"blobs/{number}", link.parent))
    (episode,) = read(snapshot)
    assert np.array_equal(episode.actions, read(plain)[0].actions)
    video = next((snapshot / "videos").rglob("*.mp4"))
    video.unlink()
    shutil.copy(next((plain / "videos").rglob("*.mp4")), repository / "elsewhere.mp4")
    video.symlink_to(repository / "elsewhere.mp4")
    assert "leads out of the dataset's folder" in reason(snapshot)


# --- small files that claim much --------------------------------------------------------------------------------


def test_a_table_of_many_equal_rows_is_refused_before_it_is_unpacked(tmp_path):
    """Four million equal numbers take a few kilobytes in Parquet and 32 MB in memory."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"action": np.zeros(4_000_000)}), path, compression="zstd")
    assert path.stat().st_size < 100_000

    cost = measured(lambda: read_columns(path, {"action"}.__contains__, most_bytes=1 << 20))
    assert isinstance(cost.error, UserError)
    assert "its rows unpack to more than 1 MB" in str(cost.error)
    assert cost.megabytes < 10
    assert len(read_columns(path, {"action"}.__contains__)) == 4_000_000


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_headers_of_pages_tell_what_the_footer_tells(tmp_path, compression, version):
    """Walked by hand, the pages fill the column exactly, and their sizes add up to the footer's."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {"a": rng.normal(size=30_000), "b": [f"text {number % 700}" * 3 for number in range(30_000)]}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression=compression, data_page_version=version, data_page_size=4096)
    with pq.ParquetFile(path) as file, path.open("rb") as raw:
        for number in range(2):
            column = file.metadata.row_group(0).column(number)
            start = column.dictionary_page_offset or column.data_page_offset
            pages = list(page_sizes(raw, start, start + column.total_compressed_size))
            assert sum(page.is_dictionary for page in pages) == 1
            assert len(pages) > 3
            headers = column.total_compressed_size - sum(page.packed for page in pages)
            assert column.total_uncompressed_size == headers + sum(page.unpacked for page in pages)


def test_rows_that_repeat_one_large_value_are_bounded(tmp_path):
    """A dictionary of one value of 32 MB, to which a thousand rows refer: 200 KB of file, 32 GB of rows."""
    path = tmp_path / "bomb.parquet"
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([bytes(32 << 20)]))
    pq.write_table(
        pa.table({"picture": values}), path, compression="zstd", dictionary_pagesize_limit=64 << 20
    )
    assert path.stat().st_size < 1 << 20
    cost = measured(lambda: read_columns(path, {"picture"}.__contains__, most_bytes=64 << 20))
    assert isinstance(cost.error, UserError)
    assert "unpack to more than 64 MB" in str(cost.error)
    assert cost.megabytes < 400
