"""The bench from end to end on a toy job: real, degraded, counterfactual, rolled out and foreign videos."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from tiny_job import make_tiny_job, square_episode

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.splits import split_of
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.bench.plan import Proposal
from roboalign_ray.judge.data.pairs import PairStore, open_pairs
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.pipelines.label.build_bench import bench_source, build_bench, write_degradation_sheets

BENCH = {
    "pairs": 60,
    "frames": 5,
    "samples": 2,
    "refresh": ["swr"],
    "temperatures": [1.0],
    "window": 2,
    "level_cap": 1.0,
}
VARIANTS = ("expert", "wander")


def labelled_episode(task: int, start: int, variant: int) -> Episode:
    """Two variants of a start; the second one fails. The camera looks straight at the scene."""
    episode = square_episode(3 * start + task)
    length = episode.length
    if variant:
        episode = replace(episode, frames={"front": episode.view()[::-1].copy()})
    place = np.stack(
        [np.linspace(0.1 * variant, 0.3 - 0.3 * (1 - variant), length), *np.zeros((2, length))], axis=1
    )
    privileged = {
        "object_position": place,
        "target_position": np.zeros((length, 3)),
        "gripper_position": place + np.array([0.15, 0, 0]),
        "contact": np.arange(length) > 4,
        "penetration": np.zeros(length),
    }
    success = (np.arange(length) > 2) & (variant == 0)
    return replace(
        episode,
        episode_id=f"toy/task{task}/{start}/{VARIANTS[variant]}",
        group_id=f"toy/task{task}/{start}",
        instruction=f"do task {task}",
        outcome=Outcome(bool(success.any()), success, privileged),
        provenance={"camera": {"lookat": [0, 0, 0], "distance": 1.0, "azimuth": 90, "elevation": -30}},
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    folder = tmp_path_factory.mktemp("bench_job")
    config = make_tiny_job(folder, bench=BENCH)
    episodes = (labelled_episode(t, s, v) for t in range(3) for s in range(4) for v in range(2))
    write_store(episodes, folder / "store", held_out_fraction=0.3, overwrite=True)
    return config


@pytest.fixture(scope="module")
def foreign(job: JobConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One generated video that is the real continuation itself, and one that stands still."""
    folder = tmp_path_factory.mktemp("foreign")
    real = open_store(job.episodes.store).read("toy/task1/2/expert").view()[3:8]
    for name, frames in (("copy", real), ("still", np.repeat(real[:1], 5, axis=0))):
        (folder / f"{name}.mp4").write_bytes(encode_video(frames, 10.0, crf=0))
        told = {"episode_id": "toy/task1/2/expert", "start": 3, "method": name}
        (folder / f"{name}.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def bench(
    job: JobConfig, foreign: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> PairStore:
    out = tmp_path_factory.mktemp("bench") / "out"
    summary, report = build_bench(job, out, generated=[foreign], quiet=True)
    assert report.missing == {}
    assert summary.pairs == BENCH["pairs"] + 2
    return open_pairs(out)


def test_the_mixture_is_as_asked(bench: PairStore) -> None:
    families = Counter(kind.split("/")[0] for kind in bench.kinds)
    assert families == {"real": 6, "counterfactual": 12, "degraded": 30, "rollout": 12, "generated": 2}
    degraded = [kind for kind in bench.kinds if kind.startswith("degraded")]
    assert len(set(degraded)) >= 14
    annotators = dict(zip(bench.kinds, bench.annotators, strict=True))
    assert annotators["real"] == annotators["counterfactual/wander"] == "simulator"
    assert annotators["rollout/world_model/swr-t1"] == "privileged"


def test_scores_say_what_the_videos_show(bench: PairStore) -> None:
    scores = {kind: bench.scores[[k == kind for k in bench.kinds]] for kind in set(bench.kinds)}
    assert (scores["real"] == maxima().astype(np.float32)).all(axis=1).any()
    assert (scores["counterfactual/wander"][:, 1] <= 1).all()  # never succeeds
    assert scores["generated/copy"].sum() > scores["generated/still"].sum() + 0.9
    assert scores["generated/still"][0, 3] < 0.1


def test_no_source_episode_is_on_both_sides(bench: PairStore) -> None:
    sides: dict[str, set[str]] = {}
    for split in ("train", "held_out"):
        for number in bench.split(split):
            source = bench.read(number).provenance["episode_id"]
            group = source.rsplit("/", 1)[0]
            assert bench.group_ids[number] == group
            assert split_of(group, 0.3) == split
            sides.setdefault(source, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) > 12


def test_rows_are_the_makers_pairs(job: JobConfig, bench: PairStore) -> None:
    """What streamed through Ray Data is what the maker makes in this process."""
    maker = bench_source(job).maker()
    checked = 0
    for number, kind in enumerate(bench.kinds):
        if kind.startswith("degraded"):
            pair = bench.read(number)
            made = maker.pair(Proposal(**pair.provenance["proposal"]))
            assert not isinstance(made, Failed)
            assert made.pair_id == pair.pair_id
            assert made.instruction == pair.instruction
            assert made.scores.tolist() == pair.scores.tolist()
            assert made.frames.shape == pair.frames.shape
            assert np.abs(made.frames.astype(int) - pair.frames).mean() < 8  # H.264
            checked += 1
    assert checked == 30


def test_a_sheet_for_every_degradation(job: JobConfig, tmp_path: Path) -> None:
    from PIL import Image

    written = write_degradation_sheets(bench_source(job, rollouts=False), tmp_path)
    assert len(written) >= 14
    assert {Image.open(path).format for path in written} == {"PNG"}


@pytest.mark.parametrize(
    ("sidecar", "told"),
    [
        (None, "'v.mp4' has no 'v.json' beside it"),
        ({"start": 3}, "has no episode_id"),
        ({"episode_id": "toy/task1/2/expert", "start": "3"}, "start is '3', not a frame number"),
        ({"episode_id": "toy/none", "start": 3}, "no episode 'toy/none'"),
        ({"episode_id": "toy/task1/2/expert", "start": 9}, "no window of"),
    ],
)
def test_bad_generated_videos_are_told(
    job: JobConfig, ray_cluster: None, tmp_path: Path, sidecar: dict | None, told: str
) -> None:
    (tmp_path / "videos").mkdir()
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    (tmp_path / "videos" / "v.mp4").write_bytes(encode_video(frames, 10.0))
    if sidecar is not None:
        (tmp_path / "videos" / "v.json").write_text(json.dumps(sidecar))
    with pytest.raises(UserError, match=told):
        build_bench(job, tmp_path / "out", generated=[tmp_path / "videos"], rollouts=False, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_bad_input_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["demo", "--set", "bench.frames=200", "--no-rollouts"], "frames of a clip"),
        (["demo", "--set", "bench.strengths=[2.0]"], "strengths [2.0] are not within"),
        (["demo", "--set", "bench.fames=9"], "did you mean"),
        (["demo", "--generated", str(tmp_path / "none"), "--no-rollouts"], "no such folder"),
    ):
        words = ["bench", "build", *arguments, "--out", str(tmp_path / "out")]
        assert told in refused(words, tmp_path, capsys)
