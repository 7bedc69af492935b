"""LeRobot v3.0 with shared videos at other rates and offsets than the table: every frame is the true one, or none is.

Each frame shows its episode and its number, so that a neighbour's frame cannot pass.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_videos import film, numbers, picture

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.shaping import Shaping
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.pipelines.cli.main import run

KEY = "observation.images.cam"
NTSC = Fraction(30000, 1001)


def write(
    root: Path,
    lengths: list[int],
    *,
    video_fps: Fraction | float = 30,
    table_fps: float = 30,
    offset: float = 0.0,
    listed: list[int] | None = None,
    timestamps: bool = True,
    **made: object,
) -> None:
    """A dataset whose one video runs at `video_fps` and starts `offset` table frames late; the table counts on."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{KEY}/chunk-000"):
        (root / folder).mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        "fps": table_fps,
        "features": {KEY: {"dtype": "video"}, "action": {"dtype": "float32", "shape": [2], "names": None}},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    frames = [picture(k, t) for k, length in enumerate(lengths) for t in range(length)]
    times = [n / float(video_fps) + offset / table_fps for n in range(len(frames))]
    data = film(frames, rate=video_fps, times_s=times, b_frames=2, **made)  # type: ignore[arg-type]
    (root / f"videos/{KEY}/chunk-000/file-000.mp4").write_bytes(data)
    shown = range(len(lengths)) if listed is None else listed
    rows = {
        "action": [[float(k), float(t)] for k in shown for t in range(lengths[k])],
        "frame_index": [t for k in shown for t in range(lengths[k])],
        "episode_index": [k for k in shown for _ in range(lengths[k])],
    }
    if timestamps:
        rows["timestamp"] = [np.float32(t / table_fps) for k in shown for t in range(lengths[k])]
    pq.write_table(pa.table(rows), root / "data/chunk-000/file-000.parquet")
    bounds = np.concatenate([[0], np.cumsum(lengths)]) / table_fps
    place = {"chunk_index": 0, "file_index": 0}
    entries = [
        {"episode_index": k, "length": lengths[k], "tasks": ["x"]}
        | {f"data/{name}": value for name, value in place.items()}
        | {f"videos/{KEY}/{name}": value for name, value in place.items()}
        | {f"videos/{KEY}/from_timestamp": bounds[k], f"videos/{KEY}/to_timestamp": bounds[k + 1]}
        for k in shown
    ]
    pq.write_table(pa.Table.from_pylist(entries), root / "meta/episodes/chunk-000/file-000.parquet")


def read(root: Path, **options: object) -> dict[int, Episode | Quarantined]:
    items = list(LeRobotSource(root, **options).episodes())  # type: ignore[arg-type]
    found = {int(item.episode_id[-6:]): item for item in items}
    for number, item in found.items():
        if isinstance(item, Episode):
            shown = [numbers(frame) for frame in item.view()]
            assert shown == [(number, t) for t in range(item.length)]
    return found


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize(
    ("video_fps", "table_fps", "offset"),
    [
        (NTSC, 30, 0.0),
        (30, float(NTSC), 0.0),
        (Fraction(24000, 1001), 24, 0.0),
        (30, 30, 1 / 3),
        (30, 30, -1 / 3),
        (30, 30, 1.0),
        (30, 30, 2.4),
        (15, 30, 0.0),
        (NTSC, 30, 0.3),
    ],
)
def test_every_frame_is_its_rows(
    video_fps: Fraction | float, table_fps: float, offset: float, timestamps: bool, tmp_path: Path
) -> None:
    """Six episodes and 600 frames, in which 29.97 and 30 Hz come apart by .6 of a frame."""
    write(
        tmp_path / "set",
        [100] * 6,
        video_fps=video_fps,
        table_fps=table_fps,
        offset=offset,
        timestamps=timestamps,
    )
    found = read(tmp_path / "set")
    assert len(found) == 6
    assert all(isinstance(item, Episode) for item in found.values()), found
    told = [item.provenance.get("frames") for item in found.values() if isinstance(item, Episode)]
    agree = video_fps == table_fps and abs(offset) < 0.4
    assert all((note is None) == agree for note in told)


def test_without_all_episodes_those_that_are_not_certain_are_set_aside_with_the_numbers(
    tmp_path: Path,
) -> None:
    """A table of the last episodes alone: the clocks come apart before them, and no count can prove anything."""
    write(tmp_path / "set", [100] * 12, video_fps=NTSC, listed=[0, 5, 10, 11])
    found = read(tmp_path / "set")
    assert isinstance(found[0], Episode)
    for number in (5, 10, 11):
        item = found[number]
        assert isinstance(item, Quarantined), number
        assert "29.97" in item.reason
        assert "1200 frames" in item.reason
        assert "400 rows" in item.reason
        assert "\n" not in item.reason


def test_a_subset_of_a_video_at_the_tables_rate_is_read(tmp_path: Path) -> None:
    write(tmp_path / "set", [40, 7, 60, 33], offset=-1 / 3, listed=[1, 3])
    found = read(tmp_path / "set")
    assert {number for number, item in found.items() if isinstance(item, Episode)} == {1, 3}


def test_thinned_frames_are_those_of_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "set", [50, 41, 30], video_fps=NTSC)
    for item in LeRobotSource(tmp_path / "set", shaping=Shaping(stride=4)).episodes():
        assert isinstance(item, Episode), item
        number = int(item.episode_id[-6:])
        shown = [numbers(frame) for frame in item.view()[::4]]
        assert shown == [(number, t) for t in range(0, item.length, 4)]


def test_frames_that_were_found_by_count_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "set", [100] * 6, video_fps=NTSC)
    words = ["episodes", "convert", str(tmp_path / "set"), str(tmp_path / "out"), "--json", "--quiet"]
    assert run(words) == 0
    (note,) = [note for note in json.loads(capsys.readouterr().out)["notes"] if note.startswith("frames of")]
    assert "by count" in note
    assert "29.97 Hz" in note
