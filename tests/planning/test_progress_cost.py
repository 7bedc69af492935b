"""The learned progress cost: labels, batches, training, files, refusals, and its use in a search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from labelled_store import FRAMES, SIZE, labelled_store
from safetensors.torch import load_file, save_file
from toy_planning import picture, toy, toy_options

import roboalign_ray.planning
from roboalign_ray import plan_actions
from roboalign_ray.config import ProgressConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.store import EpisodeStore
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.cost_option import open_terms
from roboalign_ray.planning.progress.card import ProgressCard, TaskError
from roboalign_ray.planning.progress.distances import distances, progress_cost
from roboalign_ray.planning.progress.frames import FrameBatches, LabelledFrames, read_labelled_frames
from roboalign_ray.planning.progress.network import ProgressNetwork
from roboalign_ray.planning.progress.term import ProgressTerm
from roboalign_ray.planning.progress.training import ProgressTrainer, held_out_errors

SMALL = ProgressConfig(
    height=SIZE,
    width=SIZE,
    channels=(8, 16, 32, 32),
    hidden=64,
    steps=170,
    warmup=5,
    frames_per_step=48,
    learning_rate=2e-3,
    ema_decay=0.9,
    noise=0.01,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> EpisodeStore:
    return labelled_store(tmp_path_factory.mktemp("labelled") / "store", starts=24)


def read(store: EpisodeStore, split: str = "train", **changes) -> LabelledFrames:
    options = {"views": ("a", "b"), "size": (SIZE, SIZE), "memory_gb": 1.0, **changes}
    return read_labelled_frames(store, store.split(split), **options)


def card(**changes) -> ProgressCard:
    fields = {"tasks": ("slide", "turn"), "views": ("a",), "height": SIZE, "width": SIZE}
    return ProgressCard(**{**fields, "embodiments": ("sawyer",), **changes})


def network(seed: int = 0, **changes) -> ProgressNetwork:
    torch.manual_seed(seed)
    return ProgressNetwork(SMALL, card(**changes)).eval()


def pictures(count: int, views: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, views, SIZE, SIZE, 3), dtype=np.uint8)


def test_distances_and_cost_in_closed_form() -> None:
    labels = {"object_position": [[0, 3, 0]], "target_position": [[4, 0, 0]], "gripper_position": [[0, 3, 2]]}
    found = distances({name: np.array(value) for name, value in labels.items()})
    np.testing.assert_allclose(found, [[5, 2]])
    np.testing.assert_allclose(progress_cost(found), [3 * 5 + 2])


def test_frames_come_with_their_own_labels(store) -> None:
    data = read(store)
    episodes = [store.read(number) for number in store.split("train")]
    known = [episode for episode in episodes if "grope" not in episode.episode_id]
    assert data.tasks == ("slide", "turn")
    assert data.frames.shape == (FRAMES * len(known), 2, SIZE, SIZE, 3)
    assert data.starts == len({episode.group_id for episode in known})
    for number, episode in enumerate(known):
        part = slice(FRAMES * number, FRAMES * (number + 1))
        np.testing.assert_array_equal(data.frames[part, 1], episode.frames["b"])
        labels = episode.outcome.privileged
        gap = np.linalg.norm(labels["gripper_position"] - labels["object_position"], axis=1)
        np.testing.assert_allclose(data.distances[part, 1], gap, rtol=1e-5)
        assert {data.tasks[task] for task in data.task[part]} == {episode.group_id.split("/")[1]}
    held_out = {store.group_ids[number] for number in store.split("held_out")}
    assert not held_out & {episode.group_id for episode in known}


def test_memory_bounds_the_frames_and_keeps_every_start(store) -> None:
    whole = read(store)
    thinned = read(store, memory_gb=whole.frames.nbytes / 2.5 / 1e9)
    assert thinned.frames.nbytes <= whole.frames.nbytes / 2
    assert thinned.starts == whole.starts


def test_batches_follow_from_the_steps_number(store) -> None:
    data = read(store)
    first, second = (FrameBatches(data, 16, seed=3) for _ in range(2))
    batches = [batch for batch, _ in zip(first, range(4), strict=False)]
    second.load_state_dict({**first.state_dict(), "step": 2})
    again = next(iter(second))
    np.testing.assert_array_equal(batches[2]["frames"], again["frames"])
    other = next(iter(FrameBatches(data, 16, seed=3, rank=1)))
    assert not np.array_equal(batches[0]["frames"], other["frames"])
    for batch in batches:
        rows = [np.flatnonzero((data.frames == frame).all(axis=(1, 2, 3, 4)))[0] for frame in batch["frames"]]
        np.testing.assert_array_equal(data.distances[rows], batch["distances"])
    with pytest.raises(UserError, match="has seed 3, this run 4"):
        FrameBatches(data, 16, seed=4).load_state_dict(first.state_dict())


def test_rare_tasks_are_drawn_as_often(store) -> None:
    data = read(store)
    few = np.flatnonzero(data.task == 0)[:3]
    rows = np.concatenate([few, np.flatnonzero(data.task == 1)])
    parts = {name: getattr(data, name)[rows] for name in ("frames", "distances", "task", "group")}
    batch = next(iter(FrameBatches(replace(data, **parts), 400, seed=0)))
    assert 0.4 < (batch["task"] == 0).mean() < 0.6


def test_training_beats_the_best_constant_on_starts_that_it_has_not_seen(store) -> None:
    torch.manual_seed(0)
    data, held_out = read(store), read(store, "held_out")
    trainer = ProgressTrainer(ProgressNetwork(SMALL, card(views=("a", "b"))), SMALL, seed=0)
    for _, batch in zip(range(SMALL.steps), FrameBatches(data, SMALL.frames_per_step, seed=0), strict=False):
        trainer.step(**batch)
    errors = held_out_errors(trainer.result(), held_out)
    constant = 100 * np.abs(held_out.distances - np.median(data.distances, axis=0)).mean(axis=0)
    groups = {store.group_ids[number] for number in store.split("held_out")}
    for task, error in errors.items():
        assert error.object_target_cm < 0.8 * constant[0]
        assert error.hand_object_cm < 0.8 * constant[1]
        assert error.starts == sum(group.startswith(f"toy/{task}/") for group in groups)


def test_a_resumed_training_is_the_same_bit_for_bit(store) -> None:
    data = read(store)
    batches = [batch for batch, _ in zip(FrameBatches(data, 8, seed=0), range(4), strict=False)]

    def trainer() -> ProgressTrainer:
        torch.manual_seed(0)
        return ProgressTrainer(ProgressNetwork(SMALL, card(views=("a", "b"))), SMALL, seed=5)

    whole, half, rest = trainer(), trainer(), trainer()
    told = [whole.step(**batch) for batch in batches]
    for batch in batches[:2]:
        half.step(**batch)
    rest.load_state_dict(half.state_dict())
    assert [rest.step(**batch) for batch in batches[2:]] == told[2:]


def test_errors_are_centimetres_over_starts() -> None:
    true = np.array([[0.1, 0.2], [0.3, 0.2], [0.2, 0.2], [0.2, 0.2]])
    error = TaskError.of(np.add(true, [[0.01, 0], [-0.03, 0.02], [0, 0], [0, 0]]), true, starts=2)
    assert (error.object_target_cm, error.hand_object_cm) == (1.0, 0.5)
    assert error.object_target_p90_cm == pytest.approx(np.percentile([1, 3, 0, 0], 90), abs=1e-3)
    assert (error.starts, error.frames) == (2, 4)


def test_the_task_is_read() -> None:
    frames = pictures(3)
    one = network()
    assert np.abs(one.distances(frames, "slide") - one.distances(frames, "turn")).max() > 1e-4
    assert (one.distances(frames, "slide") >= 0).all()


def test_batches_and_further_views_change_nothing() -> None:
    frames, one = pictures(300, views=2), network()
    whole = one.distances(frames, "turn")
    np.testing.assert_allclose(one.distances(frames[290:, :1], "turn"), whole[290:], atol=1e-6)


def test_saved_and_loaded(tmp_path) -> None:
    error = TaskError.of(np.ones((2, 2)), np.zeros((2, 2)), 1)
    one = network(errors={"turn": error})
    one.save(tmp_path / "cost")
    other = ProgressNetwork.load(tmp_path / "cost")
    assert other.card == one.card
    np.testing.assert_array_equal(other.distances(pictures(4), "turn"), one.distances(pictures(4), "turn"))
    text = (tmp_path / "cost/README.md").read_text()
    assert "| turn | 100.00 (90 % below 100.00)" in text
    assert "| slide | not measured" in text


DAMAGE = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()], "train-cost"),
    "another format": (lambda f: edit(f, format=9), "format 9, this version reads 1"),
    "no tasks": (lambda f: edit(f, card={**told(f)["card"], "tasks": []}), "tasks"),
    "another shape": (lambda f: edit(f, shape={**told(f)["shape"], "hidden": 32}), "has shape"),
    "no weights": (lambda f: (f / "progress.safetensors").unlink(), "progress.safetensors is missing"),
    "cut weights": (lambda f: (f / "progress.safetensors").write_bytes(b"12"), "cannot be read"),
    "not finite": (lambda f: poison(f), "not finite"),
}


def told(folder: Path) -> dict:
    return json.loads((folder / "progress.json").read_text())


def edit(folder: Path, **changes) -> None:
    (folder / "progress.json").write_text(json.dumps({**told(folder), **changes}))


def poison(folder: Path) -> None:
    weights = load_file(folder / "progress.safetensors")
    weights["head.bias"][0] = float("nan")
    save_file(weights, folder / "progress.safetensors")


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused_in_one_line(name, tmp_path) -> None:
    network().save(tmp_path)
    damage, message = DAMAGE[name]
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        ProgressNetwork.load(tmp_path)
    assert "\n" not in caught.value.line()


BAD_FRAMES = {
    "another size": (pictures(2)[:, :, :16], "reads frames of 32x32, not 16x32"),
    "no view axis": (pictures(2)[:, 0], "is not uint8"),
    "floats": (pictures(2).astype(np.float32), "float32"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_other_frames_are_refused(name) -> None:
    frames, message = BAD_FRAMES[name]
    with pytest.raises(UserError, match=message):
        network().distances(frames, "turn")


def test_other_world_models_and_tasks_are_refused() -> None:
    good = toy().card
    robot = ActionCard.make(["x", "y"], ["delta", "delta"], embodiments=["franka"])
    for wrong, changes, message in (
        (good, {"height": 64}, "reads frames of 64x32, the world model's have 32x32"),
        (good, {"views": ("a", "b")}, "reads 2 views \\(a, b\\), the world model predicts 1"),
        (replace(good, actions=robot), {}, "was trained on sawyer, the world model on franka"),
    ):
        with pytest.raises(UserError, match=message):
            ProgressTerm(network(**changes), "turn", wrong)
    with pytest.raises(UserError, match="not trained on the task 'trun'; did you mean 'turn'"):
        ProgressTerm(network(), "trun", good)
    ProgressTerm(network(), "turn", good)


def test_it_is_a_cost_by_name(tmp_path) -> None:
    """The plan of the named cost is that of the same network given as a function, and its cost the network's own."""
    network(seed=4).save(tmp_path)
    env = gymnasium.make(roboalign_ray.planning.ENVIRONMENT, **toy_options(image=picture(10)))
    env.reset(seed=0)
    search = {"horizon": 2, "candidates": 4, "iterations": 1}
    named = {"progress": {"weights": str(tmp_path), "task": "turn", "weight": 2.0}}
    found = plan_actions(env, "cem", cost=named, **search)
    term = ProgressTerm(network(seed=4), "turn", toy().card)
    again = plan_actions(env, "cem", cost=lambda predicted: 2 * term(predicted), **search)
    np.testing.assert_array_equal(found.actions, again.actions)
    env.unwrapped.reset(seed=0)
    assert found.cost == pytest.approx(again.cost)


BAD_COSTS = {
    "unknown": ({"progres": {}}, "unknown cost 'progres'; did you mean 'progress'"),
    "no settings": (
        "progress",
        "cost progress: a value is missing|cost progress.weights: a value is missing",
    ),
    "unknown setting": (
        {"progress": {"weights": "x", "task": "turn", "wieght": 1}},
        "unknown key 'wieght'",
    ),
    "weight of another type": ({"progress": {"weight": "1"}}, "its weight is '1'"),
    "no table": ({"progress": 3}, "settings are of type int"),
    "no folder": ({"progress": {"weights": "nowhere", "task": "turn"}}, "no progress network here"),
}


@pytest.mark.parametrize("name", BAD_COSTS)
def test_bad_costs_are_refused_in_one_line(name) -> None:
    option, message = BAD_COSTS[name]
    with pytest.raises(UserError, match=message):
        open_terms(option, toy().card)
