"""`roboalign rollout`: the files hold what the model predicts, and bad input is one line that leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.folder import open_folder
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.episodes.video import decode_video
from roboalign_ray.pipelines.cli.main import run
from roboalign_ray.pipelines.rollout.inputs import read_actions
from roboalign_ray.pipelines.rollout.job import _view_names
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.registry import open_world_model

EPISODE = "metaworld/drawer-open/0/expert"


@pytest.fixture(scope="module")
def episode() -> Episode:
    return open_store("shipped").read(EPISODE)


def read_dataset(folder: Path) -> list[Episode]:
    found = list(open_folder(folder).episodes())
    assert all(isinstance(each, Episode) for each in found)
    return found  # type: ignore[return-value]


def close(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal but for what video compression changes."""
    error = first.astype(float) - second
    return bool(first.shape == second.shape and 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) > 27)


def test_an_episode_is_rolled_out_beside_its_real_continuation(episode: Episode, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "rollout",
        "--episode",
        EPISODE,
        "--start",
        "4",
        "--horizon",
        "5",
        "--samples",
        "2",
        "--seed",
        "7",
    ]
    assert run([*words, "--out", str(out)]) == 0
    # Two frames of the episode are one step of the model; actions in between add up.
    actions = np.stack([episode.actions[4 + 2 * t : 6 + 2 * t] for t in range(5)])
    moved = np.concatenate([actions[:, :, :3].sum(axis=1), actions[:, -1:, 3]], axis=1)
    first = episode.view()[4]
    model = open_world_model("shipped", JobConfig().rollout)
    state = model.step(
        model.begin([Prompt("p", first, first, moved)], [(7, 8)]), moved[None].astype(np.float32)
    )
    expected = model.frames(state)[:, :, 0]
    samples = read_dataset(out / "dataset")
    assert len(samples) == 2
    for sample, frames in zip(samples, expected, strict=True):
        assert list(sample.frames) == list(episode.frames)
        [seen] = sample.frames.values()
        assert close(seen, np.concatenate([first[None], frames]))
        np.testing.assert_allclose(sample.actions[:-1], moved, atol=1e-6)
        np.testing.assert_allclose(sample.actions[-1], [0, 0, 0, moved[-1, 3]], atol=1e-6)
        assert (sample.instruction, sample.fps, sample.embodiment) == (episode.instruction, 5.0, "sawyer")
        assert sample.action_names == episode.action_names
        assert sample.action_kinds == episode.action_kinds == ("delta", "delta", "delta", "hold")
    film = decode_video(out / "rollout.mp4")
    assert film.shape == (6, 256, 3 * 256 + 2 * 4, 3)
    real = episode.view()[4:15:2].repeat(4, axis=1).repeat(4, axis=2)
    assert close(film[:, :, :256], real)
    with Image.open(out / "rollout.gif") as gif:
        assert gif.n_frames == 6
    told = json.loads((out / "rollout.json").read_text())
    assert told["seeds"] == [7, 8]
    np.testing.assert_allclose(told["actions"], moved, atol=1e-6)


@pytest.mark.parametrize("suffix", ["npy", "csv", "json"])
def test_an_image_is_rolled_out_with_a_file_of_actions(
    suffix: str, episode: Episode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.array([[0.01, -0.02, 0.03, 1], [0, 0.01, 0, -1], [0.02, 0, 0, -1]], np.float32)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    elif suffix == "csv":
        path.write_text("dx,dy,dz,gripper\n" + "\n".join(",".join(map(str, row)) for row in values.tolist()))
    else:
        path.write_text(json.dumps(values.tolist()))
    large = episode.view()[0].repeat(3, axis=0).repeat(3, axis=1)
    Image.fromarray(large).save(tmp_path / "start.png")
    words = [
        "rollout",
        "--image",
        str(tmp_path / "start.png"),
        "--actions",
        str(path),
        "-i",
        "open the drawer",
    ]
    assert run([*words, "--out", str(tmp_path / "out")]) == 0
    assert "start.png: 192x192 pixels resized to 64x64" in capsys.readouterr().err
    [sample] = read_dataset(tmp_path / "out/dataset")
    [seen] = sample.frames.values()
    assert close(seen[:1], resize_frames(large[None], 64, 64))
    assert len(seen) == 4
    np.testing.assert_allclose(sample.actions[:-1], values)
    assert sample.instruction == "open the drawer"


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "start.png")
    good, out = tmp_path / "good.json", str(tmp_path / "out")
    good.write_text("[[0, 0, 0, 1]]")
    (tmp_path / "wide.json").write_text("[[0, 0, 0, 1, 2]]")
    (tmp_path / "nan.json").write_text('[[0, 0, 0, "nan"]]')
    (tmp_path / "text.csv").write_text("a,b,c,d\n1,2,x,4\n")
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    image = ["--image", str(tmp_path / "start.png")]
    cases = {
        "starts from an image or from an episode": [],
        "an image needs actions": image,
        "an episode brings its own actions": ["--episode", EPISODE, "--actions", str(good)],
        "the world model takes [T, 4]": [*image, "--actions", str(tmp_path / "wide.json")],
        "action 0, dimension 3, is nan": [*image, "--actions", str(tmp_path / "nan.json")],
        "holds no table of numbers": [*image, "--actions", str(tmp_path / "text.csv")],
        "torn.npy": [*image, "--actions", str(tmp_path / "torn.npy")],
        "objects.npy": [*image, "--actions", str(tmp_path / "objects.npy")],
        "no known format": [*image, "--actions", str(tmp_path / "bad.png")],
        "cannot be decoded": ["--image", str(tmp_path / "bad.png"), "--actions", str(good)],
        "want as many actions": [*image, "--actions", str(good), "--horizon", "2"],
        "no episode 'x'": ["--episode", "x"],
    }
    for said, words in cases.items():
        assert said in refused(["rollout", *words, "--out", out], tmp_path, capsys)
    words = ["rollout", *image, "--actions", str(good), "--out", str(tmp_path / "full")]
    assert "is not empty" in refused(words, tmp_path, capsys)


def test_views_keep_the_names_that_can_name_folders() -> None:
    assert _view_names(["front", "wrist/left"], 2) == ["front", "wrist_left"]
    assert _view_names((), 2) == _view_names(["a/b", "a_b"], 2) == ["view_0", "view_1"]


def test_actions_of_many_forms_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("1,2\n\n3,4\n")
    (tmp_path / "named.csv").write_text("\ufeffx,y\n1,2\n3,4\n")
    for name in ("plain.csv", "named.csv"):
        np.testing.assert_array_equal(read_actions(tmp_path / name, 2), [[1, 2], [3, 4]])
