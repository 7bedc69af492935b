"""Bad input about a diffusion world model, through the command line: one line, exit code 2, before Ray starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from refusals import refused
from safetensors.numpy import load_file, save_file
from tiny_diffusion_job import VIEWS, make_diffusion_job
from tiny_job import EPISODES, square_episode

from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.store import write_store

WEIGHTS, DENOISER, CARD = "denoiser/model.safetensors", "denoiser/denoiser.json", "denoiser/action_card.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy job about a denoiser of two views: `tiny.yaml`, weights, and stores of two views, of one view
    and of actions with a third number."""
    folder = tmp_path_factory.mktemp("made")
    job = make_diffusion_job(folder)
    # By names relative to the folder: each case runs in a copy of it.
    episodes = job.episodes.model_copy(update={"store": "views"})
    places = {"world_model_weights": "denoiser", "tokenizer_weights": "tokenizer", "episodes": episodes}
    (folder / "tiny.yaml").write_text(dump_yaml(job.model_copy(update=places)))
    write_store(map(with_a_third_number, range(EPISODES)), folder / "three", held_out_fraction=0.3)
    return folder


def with_a_third_number(number: int) -> Episode:
    """An episode of two views."""
    episode = square_episode(number)
    return replace(
        episode,
        frames=dict.fromkeys(VIEWS, episode.frames["front"]),
        actions=np.pad(episode.actions, ((0, 0), (0, 1))),
        action_names=(*episode.action_names, "grip"),
        action_kinds=(*episode.action_kinds, "delta"),
    )


def nothing(folder: Path) -> None:
    """The command line alone is wrong."""


def torn(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:200]) and None


def changed(name: str, **changes: object) -> Callable[[Path], None]:
    """A JSON file with other values."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return prepare


def another_network(folder: Path) -> None:
    """Weights of another shape than the description's."""
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[0]
    save_file(weights | {name: np.zeros((3, 5), np.float32)}, folder / WEIGHTS)


def another_robot(folder: Path) -> None:
    """The card of a robot that the store has no episode of."""
    card = json.loads((folder / CARD).read_text())
    del card["hash"]  # as a card that was edited on purpose
    (folder / CARD).write_text(json.dumps({**card, "embodiments": ["another robot"]}))


# kind: (what is wrong with the files, the command, what the line must say)
CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "fewer views than the denoiser of the profile": (
        nothing,
        "evaluate tiny.yaml --set episodes.views=[front]",
        "diffusion.denoiser.views: the denoiser has 2 views, episodes.views names 1; name as many views",
    ),
    "fewer views than the world model": (
        nothing,
        "align tiny.yaml --set episodes.views=[front] --set world_model_kind=token",
        "episodes.views: names 1 view, and the world model predicts 2; name the views",
    ),
    "a store of fewer views": (
        nothing,
        "align tiny.yaml --set episodes.views=[] --set world_model_kind=token --set episodes.store=store",
        "store: has 1 view (front), and the world model predicts 2; take a store",
    ),
    "a view that the store has not": (
        nothing,
        "align tiny.yaml --set episodes.views=[front,wrist]",
        "episodes.views: the store has no view 'wrist'; it has below, front",
    ),
    "clips of no frame": (
        nothing,
        "pretrain tiny.yaml --set diffusion.denoiser.clip_frames=0",
        "diffusion.denoiser.clip_frames: expected greater than or equal to 1, got 0",
    ),
    "a history that is not sorted": (
        nothing,
        "pretrain tiny.yaml --set diffusion.denoiser.history=[0,5,2]",
        "diffusion.denoiser.history: [0, 5, 2] does not begin with 0, the newest frame, and ascend; sort the frames",
    ),
    "no denoising step": (
        nothing,
        "align tiny.yaml --set rollout.diffusion.steps=0",
        "rollout.diffusion.steps: expected greater than or equal to 1, got 0",
    ),
    "a branch beyond the horizon": (
        nothing,
        "align tiny.yaml --set rollout.branching.most=5",
        "rollout.branching.most: 5 clips of 1 frames are longer than the longest rollout, 4 frames; set fewer",
    ),
    "a group of one": (
        nothing,
        "align tiny.yaml --set alignment.group_size=1",
        "alignment.group_size: expected greater than or equal to 2, got 1",
    ),
    "an objective of another kind of model": (
        nothing,
        "align tiny.yaml --set alignment.objective=grpo",
        "alignment.objective: the objective 'grpo' trains world models of kind 'token', and this one is of kind",
    ),
    "an objective that ZeRO 3 takes apart": (
        nothing,
        "align tiny.yaml --set alignment.zero_stage=3",
        "alignment.zero_stage: the objective 'diffusion_nft' runs one network with the weights of several policies",
    ),
    "an old policy that is the trained one": (
        nothing,
        "align tiny.yaml --set alignment.diffusion.old_policy.first=0",
        "alignment.diffusion.old_policy.first: expected greater than 0, got 0",
    ),
    "a refresh policy that keeps tokens": (
        nothing,
        "align tiny.yaml --set rollout.refresh.policy=sinks",
        "no refresh policy 'sinks'",
    ),
    "weights that are torn": (torn(WEIGHTS), "align tiny.yaml", WEIGHTS),
    "weights of another network": (another_network, "align tiny.yaml", "must come from one pre-training"),
    "a description that is torn": (torn(DENOISER), "align tiny.yaml", f"{DENOISER}: cannot be read as"),
    "a description of a later format": (
        changed(DENOISER, format=2),
        "align tiny.yaml",
        f"{DENOISER}: cannot be read as description of a denoiser (format",
    ),
    "no action card": (
        lambda folder: (folder / CARD).unlink(),
        "align tiny.yaml",
        "denoiser: holds no action_card.json; copy the folder again",
    ),
    "the card of another robot": (another_robot, "align tiny.yaml", "the robot is toy in"),
    "actions of other dimensions than the world model's": (
        nothing,
        "align tiny.yaml --set episodes.store=three",
        "three: the store's actions have 3 dimensions, the world model 2",
    ),
    "actions of other dimensions than those to be trained": (
        nothing,
        "pretrain tiny.yaml --set diffusion.denoiser.action_dims=3",
        "views: the store's actions have 2 dimensions, the world model 3; set diffusion.denoiser.action_dims to 2",
    ),
    "another denoiser than the profile's": (
        nothing,
        "evaluate tiny.yaml --set diffusion.denoiser.past_actions=1",
        "denoiser.json: holds another denoiser (past_actions 2 != 1); set diffusion.denoiser",
    ),
    "training that continues a token model": (
        nothing,
        "pretrain tiny.yaml --set diffusion.training.start=world_model",
        "world_model: holds no diffusion world model; set diffusion.training.start",
    ),
    "training that continues nothing": (
        nothing,
        "pretrain tiny.yaml --set diffusion.training.start=nowhere",
        "nowhere: holds no diffusion world model; set diffusion.training.start",
    ),
    "training that continues another denoiser": (
        nothing,
        "pretrain tiny.yaml --set diffusion.training.start=denoiser --set diffusion.noise.residual_scale=0.5",
        "denoiser.json: holds another denoiser (residual_scale 0.15 != 0.5)",
    ),
    "arms that cannot get equal terms": (
        nothing,
        "reproduce persistence tiny.yaml --set rollout.horizon=7",
        "rollout.horizon: 16 clips an optimizer step are no whole number of windows of 7 clips; choose it",
    ),
    "no weights at all": (
        nothing,
        "demo tiny.yaml --set world_model_weights=nowhere",
        "nowhere: no such folder; set world_model_weights to a folder",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_bad_input_is_refused_in_one_line_before_ray_starts(
    kind: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, command, expected = CASES[kind]
    folder = Path(shutil.copytree(made, tmp_path / "job"))
    prepare(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    assert expected in refused([*command.split(), "--quiet"], folder, capsys)
