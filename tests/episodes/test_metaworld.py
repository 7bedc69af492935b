"""Simulated episodes: the same every time, labelled by the simulator, and moving."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from roboalign_ray.config import SimulationConfig
from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources import opengl
from roboalign_ray.episodes.sources.base import EpisodeSource
from roboalign_ray.episodes.sources.metaworld import MetaworldSource
from roboalign_ray.episodes.sources.metaworld_tasks import DEFAULT_TASKS, SENTENCES
from roboalign_ray.episodes.sources.metaworld_variants import VARIANTS
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError

SMALL = SimulationConfig(
    tasks=("drawer-open", "push"),
    starts_per_task=2,
    variants=("expert", "noisy", "wander"),
    frames=30,
    height=32,
    width=32,
)


@pytest.fixture(scope="module")
def source() -> MetaworldSource:
    try:
        return MetaworldSource(SMALL)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def drawer(source: MetaworldSource) -> list[Episode]:
    return source.group("drawer-open", 1)


def test_the_built_in_tasks_are_many_and_spoken_of() -> None:
    assert len(DEFAULT_TASKS) == len(set(DEFAULT_TASKS)) >= 12
    assert set(DEFAULT_TASKS) <= set(SENTENCES)
    sentences = [text for texts in SENTENCES.values() for text in texts]
    assert len(sentences) == len(set(sentences))
    assert min(len(texts) for texts in SENTENCES.values()) >= 3
    assert len(VARIANTS) >= 4


def test_order_is_one_start_of_every_task_after_the_other(source: MetaworldSource) -> None:
    assert isinstance(source, EpisodeSource)
    assert source.groups() == [("drawer-open", 0), ("push", 0), ("drawer-open", 1), ("push", 1)]


def test_a_replay_is_bit_identical(source: MetaworldSource, drawer: list[Episode]) -> None:
    """In the same process after other episodes, and in a new simulator of a larger run."""
    source.group("push", 0)
    larger = MetaworldSource(SMALL.model_copy(update={"starts_per_task": 9}))
    for again in (source.group("drawer-open", 1), larger.group("drawer-open", 1)):
        for first, second in zip(drawer, again, strict=True):
            assert first.episode_id == second.episode_id
            np.testing.assert_array_equal(first.actions, second.actions)
            np.testing.assert_array_equal(first.view(), second.view())
            np.testing.assert_array_equal(first.state, second.state)
            for name, values in first.outcome.privileged.items():
                np.testing.assert_array_equal(values, second.outcome.privileged[name])


def test_the_bounds_are_what_the_simulators_scale_and_the_steps_of_a_frame_allow(
    source: MetaworldSource, drawer: list[Episode]
) -> None:
    """An expert that heads for a far drawer gives its largest command throughout: the bound is reached."""
    scale = source._simulators["drawer-open"].env.action_scale
    low, high = np.array(source.action_bounds).T
    np.testing.assert_allclose(high, [SMALL.steps_per_frame * scale] * 3 + [1.0])
    np.testing.assert_array_equal(low, -high)
    actions = np.concatenate([episode.actions for episode in drawer])
    assert (np.abs(actions) <= high + 1e-6).all()
    assert np.abs(actions[:, :3]).max() == pytest.approx(high[0], rel=1e-5)


def test_a_second_view_leaves_the_first_as_it_is(source: MetaworldSource, drawer: list[Episode]) -> None:
    """The wrist camera is mounted on the hand: while the hand moves, most of its picture changes."""
    both = MetaworldSource(SMALL.model_copy(update={"views": ("wrist", "front")}))
    expert = both.group("drawer-open", 1)[0]
    assert isinstance(expert, Episode)
    assert list(expert.frames) == ["wrist", "front"]
    np.testing.assert_array_equal(expert.frames["front"], drawer[0].frames["front"])
    np.testing.assert_array_equal(expert.actions, drawer[0].actions)
    moved = np.linalg.norm(expert.actions[:-1, :3], axis=1) > 0.02
    assert moved.sum() >= 3

    def changed(view: str) -> float:
        steps = np.abs(np.diff(expert.frames[view].astype(int), axis=0)).max(axis=-1) > 4
        return float(steps[moved].mean())

    assert changed("wrist") > 2 * changed("front") > 0


def test_views_are_known_and_named_once() -> None:
    for views in (("front", "front"), ("side",), ()):
        with pytest.raises(ValueError, match="views"):
            SimulationConfig(views=views)


def test_variants_begin_alike_and_then_differ(drawer: list[Episode]) -> None:
    expert, *others = drawer
    assert {episode.group_id for episode in drawer} == {"metaworld/drawer-open/1"}
    for other in others:
        np.testing.assert_array_equal(other.view()[0], expert.view()[0])
        np.testing.assert_array_equal(other.state[0], expert.state[0])
        assert np.abs(other.actions - expert.actions).max() > 0.01
        assert np.abs(other.view()[-1].astype(int) - expert.view()[-1]).mean() > 1


def test_starts_differ(source: MetaworldSource, drawer: list[Episode]) -> None:
    other = source.group("drawer-open", 0)[0]
    assert np.abs(other.view()[0].astype(int) - drawer[0].view()[0]).mean() > 0.5


def test_labels_tell_what_happened(drawer: list[Episode]) -> None:
    expert, _, wander = drawer
    labels = expert.outcome.privileged
    assert expert.outcome.success is True
    assert expert.outcome.success_per_frame[0] == False  # noqa: E712
    pulled = np.linalg.norm(labels["object_position"] - labels["object_position"][0], axis=1)
    first = int(np.argmax(expert.outcome.success_per_frame))
    assert pulled[first] > 0.1  # the drawer is out when the simulator says so
    assert pulled[: max(1, first // 3)].max() < 0.02
    assert labels["contact"].any()
    assert not labels["contact"].all()
    assert wander.outcome.success is False
    for episode in drawer:
        labels = episode.outcome.privileged
        assert {name: len(values) for name, values in labels.items()} == dict.fromkeys(labels, 30)
        np.testing.assert_array_equal(labels["contact_force"] > 0, labels["contact"])
        assert (labels["penetration"] >= 0).all()
        assert (labels["penetration"] < 0.2).all()
        # A pulled drawer is gripped where it is: contact only within reach.
        gap = np.linalg.norm(labels["gripper_position"] - labels["object_position"], axis=1)
        assert (gap[labels["contact"]] < 0.3).all()


def test_an_action_moves_the_hand_from_its_frame_to_the_next(drawer: list[Episode]) -> None:
    """The hand follows its command with a lag, so motion fits the action of the same step best, never a later one."""
    wander = drawer[2]
    moved, asked = np.diff(wander.state[:, :3], axis=0), wander.actions[:, :3]
    fits = {
        shift: np.corrcoef(moved[2:-2].ravel(), asked[2 + shift : len(moved) - 2 + shift].ravel())[0, 1]
        for shift in (-1, 0, 1)
    }
    assert fits[0] > 0.7
    assert fits[0] > fits[1]
    assert np.abs(asked).max() <= 4 * 0.01 + 1e-6  # four steps of a centimetre


def test_pictures_are_upright_and_keep_moving(source: MetaworldSource) -> None:
    for episode in source.group("push", 1):
        frames = episode.view().astype(float)
        scene = np.median(frames, axis=0)  # without the arm, which passes
        floor, wall = scene[-4:].mean((0, 1)), scene[:4, -8:].mean((0, 1))
        assert floor[0] > floor[2] + 15  # brown wood below
        assert abs(wall[0] - wall[2]) < 15  # grey wall above
        change = ((frames[1:] - frames[:-1]) ** 2).mean((1, 2, 3))
        assert (change > 1.0).mean() > 0.9


def test_a_rate_and_a_sentence_come_along(drawer: list[Episode]) -> None:
    assert drawer[0].fps == pytest.approx(80 / 4)
    assert drawer[0].instruction in SENTENCES["drawer-open"]
    assert drawer[0].provenance["variant"] == "expert"


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_runs(variant: str, source: MetaworldSource) -> None:
    config = SMALL.model_copy(update={"variants": (variant,), "frames": 12, "height": 16, "width": 16})
    (episode,) = MetaworldSource(config).group("push", 0)
    assert np.abs(episode.actions[:, :3]).sum() > 0.05


def test_a_detour_leaves_the_picture_and_the_expert_still_arrives(source: MetaworldSource) -> None:
    """Hands outside of the box that other variants wander in occur, and half of the starts are solved all the same."""
    changes = {"variants": ("detour",), "frames": 40, "steps_per_frame": 16, "height": 8, "width": 8}
    far = MetaworldSource(SMALL.model_copy(update=changes))
    made = [far.group("drawer-open", index)[0] for index in range(4)]
    hands = np.concatenate([episode.outcome.privileged["gripper_position"] for episode in made])
    assert np.abs(hands[:, 0]).max() > 0.31
    assert sum(episode.outcome.success for episode in made) >= 2
    first = [int(np.argmax(e.outcome.success_per_frame)) for e in made if e.outcome.success]
    assert max(first) > min(first) + 5  # the detours differ in length


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'drawer-open'"):
        MetaworldSource(SMALL.model_copy(update={"tasks": ("drawer-opne",)}))
    with pytest.raises(UserError, match="did you mean 'expert'"):
        MetaworldSource(SMALL.model_copy(update={"variants": ("exprt",)}))


def test_a_missing_simulator_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"roboalign-ray\[simulation\]"):
        MetaworldSource(SMALL)


@pytest.mark.usefixtures("source")
def test_a_missing_opengl_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    with pytest.raises(UserError, match="libegl1 libegl-mesa0 libosmesa6") as caught:
        opengl.require_simulator()
    assert "MUJOCO_GL=no-such-backend" in str(caught.value)


def test_the_shipped_store_is_small_varied_and_split() -> None:
    store = open_store("shipped")
    tasks = {group.split("/")[1] for group in store.group_ids}
    assert len(tasks) >= 12
    assert sum(file.stat().st_size for file in store.path.iterdir()) < 9e6
    held_out = {store.group_ids[number].split("/")[1] for number in store.split("held_out")}
    assert len(held_out) >= 8
    assert "roboalign episodes generate" in (store.path / "README.md").read_text()


@pytest.mark.usefixtures("source")
def test_the_shipped_store_can_be_made_again() -> None:
    """Its first start of one task, simulated here. Another processor may round otherwise, so early frames only."""
    store = open_store("shipped")
    shipped = store.read(store.ids.index("metaworld/window-open/0/expert"))
    pace = shipped.provenance["steps_per_frame"]
    config = SimulationConfig(variants=("expert",), frames=8, steps_per_frame=pace)
    (made,) = MetaworldSource(config).group("window-open", 0)
    assert made.episode_id == shipped.episode_id
    assert shipped.instruction == made.instruction
    np.testing.assert_allclose(shipped.state[:8], made.state, atol=1e-3)
    np.testing.assert_allclose(shipped.actions[:7], made.actions[:7], atol=1e-3)
    assert np.abs(shipped.view()[:8].astype(int) - made.view()).mean() < 3
