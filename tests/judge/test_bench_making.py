"""Pairs made from the shipped episodes: labels that fit the kind, and foreign videos scored against what is real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.config.bench import BenchConfig
from roboalign_ray.episodes.splits import split_of
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.video import encode_video
from roboalign_ray.episodes.windows import WindowSpec
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.degradation_table import DEGRADATIONS
from roboalign_ray.judge.bench.generated import find_generated, generated_pairs
from roboalign_ray.judge.bench.pair_maker import PairMaker
from roboalign_ray.judge.bench.plan import Planner
from roboalign_ray.judge.bench.sheets import contact_sheet
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.rubric import maxima


@pytest.fixture(scope="module")
def maker() -> PairMaker:
    return PairMaker(open_store("shipped"), WindowSpec(13, stride=2), BenchConfig())


def test_every_degradation_is_made_of_real_episodes(maker: PairMaker) -> None:
    planner = Planner(maker.index(), maker.config, maker.spec.span)
    made = {}
    for proposal in planner.propose("degraded", len(DEGRADATIONS)):
        pair = maker.pair(proposal)
        assert isinstance(pair, JudgedPair)
        source = maker.source(proposal.episode, proposal.start)
        assert (pair.scores <= source.score.scores() + 1e-6).all()
        assert pair.group_id == source.group_id
        assert pair.provenance["episode_id"].endswith("/expert")
        assert (pair.instruction == source.window.instruction) == (proposal.name != "wrong_instruction")
        assert pair.fps == source.fps
        made[pair.kind] = pair
        assert np.array_equal(maker.pair(proposal).frames, pair.frames)
    assert set(made) == {f"degraded/{name}" for name in DEGRADATIONS}


def test_what_is_cut_in_is_of_another_start_on_the_same_side_of_the_split() -> None:
    maker = PairMaker(open_store("shipped"), WindowSpec(13, stride=2), BenchConfig(), held_out_fraction=0.3)
    store, sides, tried = maker.store, set(), 0
    for number in range(0, len(store.ids), 17):
        source = maker.source(number, 0)
        own = store.group_ids[number]
        for needs, same_task in (("other_scene", False), ("other_episode", True)):
            asked = []
            read = maker._episode
            maker._episode = lambda n, read=read, asked=asked: asked.append(n) or read(n)
            other = getattr(maker.material(source, np.random.default_rng(number), (needs,)), needs)
            maker._episode = read
            if other is None:
                continue
            [donor] = asked
            whole = store.read(donor).frames["front"]
            assert any(np.array_equal(whole[n : n + 25 : 2], other) for n in range(len(whole) - 24))
            group = store.group_ids[donor]
            assert group != own
            assert (group.rsplit("/", 1)[0] == own.rsplit("/", 1)[0]) is same_task
            assert split_of(group, 0.3) == split_of(own, 0.3)
            sides.add(split_of(own, 0.3))
            tried += 1
    assert tried >= 20
    assert sides == {"train", "held_out"}


def test_foreign_videos_are_scored_against_the_real_ones(maker: PairMaker, tmp_path: Path) -> None:
    source = maker.source(0, 10)
    real = source.window.frames
    for name, frames in (("copy", real), ("still", np.repeat(real[:1], len(real), axis=0))):
        (tmp_path / f"{name}.mp4").write_bytes(encode_video(frames, 10.0, crf=0))
        told = {"episode_id": source.window.episode_id, "start": 10, "method": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    copy, still = generated_pairs(find_generated(tmp_path), maker)
    assert copy.kind == "generated/copy"
    assert copy.scores == pytest.approx(source.score.scores(), abs=0.1)
    assert still.scores[3] == 0
    assert still.total < copy.total - 2
    contact_sheet([("copy", copy.frames), ("still", still.frames)], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert (maxima() >= copy.scores - 1e-6).all()


def test_bad_folders_of_videos_are_told(maker: PairMaker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_generated(tmp_path / "none")
    with pytest.raises(UserError, match="holds no video"):
        find_generated(tmp_path)
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"'v.mp4' has no 'v.json' beside it"):
        find_generated(tmp_path)
    for told, line in (
        ({"start": 3}, "has no episode_id"),
        ({"episode_id": "x", "start": "3"}, "start is '3'"),
    ):
        (tmp_path / "v.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=line):
            find_generated(tmp_path)
    (tmp_path / "v.json").write_text(json.dumps({"episode_id": "x", "start": 3}))
    with pytest.raises(UserError, match=r"v.mp4: video cannot be decoded"):
        list(generated_pairs(find_generated(tmp_path), maker))


def test_two_videos_of_one_name_are_refused(tmp_path):
    """Both would be read with the one JSON file, under the one id."""
    for name in ("a.mp4", "a.mov"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.json").write_text('{"episode_id": "x", "start": 0}')
    with pytest.raises(UserError, match=r"'a.mov' and 'a.mp4' differ only in their suffix"):
        find_generated(tmp_path)
