"""Videos that cannot be read among others: told, set aside, and nobody else's business."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.foundation.failures import HostError, UserError
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.label.job import label_items
from roboalign_ray.pipelines.label.videos import Unreadable, items_of

BAD = {
    "empty": (b"", {"instruction": "open it"}, "cannot be decoded"),
    "noise": (bytes(range(256)) * 8, {"instruction": "open it"}, "cannot be decoded"),
    "thirty": (None, {"instruction": "open it", "fps": "thirty"}, "fps is 'thirty', not a number above 0"),
    "negative": (None, {"instruction": "open it", "fps": -3}, "fps is -3, not a number above 0"),
    "true": (None, {"instruction": "open it", "fps": True}, "fps is True, not a number above 0"),
    "infinite": (None, {"instruction": "open it", "fps": float("inf")}, "fps is inf, not a number above 0"),
    "silent": (None, {"fps": 10}, "has no instruction"),
    "number": (None, {"instruction": 3}, "has no instruction"),
    "listed": (None, ["open it"], "holds no object"),
}


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos, the first and the last by name, and one of every bad kind between them."""
    folder = tmp_path_factory.mktemp("videos")
    good = encode_video(clip(0), 5.0)
    for name, (content, about, _) in BAD.items():
        (folder / f"{name}.mp4").write_bytes(good if content is None else content)
        (folder / f"{name}.json").write_text(json.dumps(about))
    (folder / "alone.mp4").write_bytes(good)
    (folder / "torn.mp4").write_bytes(good)
    (folder / "torn.json").write_text('{"instruction": ')
    (folder / "deep.mp4").write_bytes(good)
    (folder / "deep.json").write_text("[" * 100_000)
    for name in ("a", "z"):
        (folder / f"{name}.mp4").write_bytes(good)
        (folder / f"{name}.json").write_text('{"instruction": "open it", "fps": 5}')
    return folder


def test_every_bad_video_has_its_reason_and_the_others_their_frames(videos: Path) -> None:
    items = {item.pair_id: item for item in items_of(videos)}
    good = {name for name, item in items.items() if isinstance(item, JudgedPair)}
    assert good == {"a", "z"}
    assert items["a"].fps == 5.0
    for name, (_, _, reason) in BAD.items():
        assert reason in items[name].reason, name
        assert f"{name}." in items[name].reason
    assert "no 'alone.json' beside it" in items["alone"].reason
    assert "cannot be read as description of a video" in items["torn"].reason
    assert "nested too deeply" in items["deep"].reason
    assert not any("\n" in item.reason for item in items.values() if isinstance(item, Unreadable))


def test_a_folder_of_bad_videos_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.mp4").write_bytes(encode_video(clip(0), 5.0))
    with pytest.raises(UserError, match=r"no '1.json' beside it"):
        items_of(tmp_path)


def test_a_damaged_pair_of_a_store_is_set_aside(tmp_path: Path) -> None:
    pairs = [
        JudgedPair(f"p{n}", f"g{n}", clip(n), 5.0, "open it", np.zeros(6, np.float32), "toy", "real")
        for n in range(3)
    ]
    write_pairs(iter(pairs), tmp_path / "pairs")
    [shard] = (tmp_path / "pairs").glob("*.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(shard)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    [name] = [key for key, cells in columns.items() if isinstance(cells[0], bytes)]
    columns[name][1] = b"no video"
    import pyarrow as pa

    pq.write_table(pa.table(columns, schema=table.schema), shard)
    kinds = [type(item) for item in items_of(tmp_path / "pairs")]
    assert kinds == [JudgedPair, Unreadable, JudgedPair]


def test_a_machine_that_denies_access_is_no_bad_video(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> np.ndarray:
        raise HostError("Too many open files", where=str(path))

    monkeypatch.setattr("roboalign_ray.pipelines.label.videos.decode_video", denied)
    with pytest.raises(HostError):
        list(items_of(videos))


class OnePool:
    """A pool in this process, of a teacher that likes everything."""

    name, losses = "toy", 0

    def run(self, next_batch, done) -> None:
        while batch := next_batch():
            for key, request in batch:
                assert isinstance(request, JudgeRequest)
                done(key, Judgement(np.ones(6), np.zeros(6), np.ones((1, 6)), "good"))


def test_labelling_goes_past_them_and_tells_them_again(videos: Path, tmp_path: Path) -> None:
    """Not one try is spent on them; a second run reads them again, so that one that was mended gets its label."""
    config, out = JobConfig(), tmp_path / "labels"
    pool = OnePool()
    report = label_items(items_of(videos), pool, config, out)
    assert report.labelled == 2
    assert set(report.set_aside) == {*BAD, "alone", "torn", "deep"}
    assert report.failed_tries == 0
    written = json.loads((out / "labelling.json").read_text())
    assert "cannot be decoded" in written["set_aside"]["empty"]
    mended = [replace(item, pair_id="empty") for item in items_of(videos) if item.pair_id == "a"]
    again = label_items(mended, pool, config, out)
    assert (again.labelled, again.set_aside) == (1, {})
    assert sorted(DistillationSet(out).ids) == ["a", "empty", "z"]


def test_scoring_goes_past_them(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a", "empty", "z"]
    words = [
        "judge",
        "score",
        *(str(videos / f"{n}.mp4") for n in [*names, "absent"]),
        "-i",
        "open it",
        "--judge",
    ]
    assert run([*words, "student", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert ["failed" in row for row in told] == [False, True, False, True]
    assert told[0]["scores"] == told[2]["scores"]
    assert "cannot be decoded" in told[1]["failed"]
    assert "no such video file" in told[3]["failed"]


def test_scoring_only_bad_ones_is_refused(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["judge", "score", str(videos / "empty.mp4"), str(videos / "noise.mp4"), "-i", "open it"]
    assert "empty.mp4" in refused([*words, "--judge", "student"], videos, capsys)
