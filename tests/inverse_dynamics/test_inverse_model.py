"""Reading actions from video: parts against closed forms, and a model trained on squares that move as told."""

from __future__ import annotations

import json
from pathlib import Path

import made_motion as made
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.config import ConfigError
from roboalign_ray.config.inverse_dynamics import (
    InverseDynamicsConfig,
    InverseNetworkConfig,
    InverseTrainingConfig,
)
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.inverse_dynamics.measurement import TRIALS, Measurement, measure, r_squared
from roboalign_ray.inverse_dynamics.model import InverseModel, load_inverse_model
from roboalign_ray.inverse_dynamics.network import InverseDynamics, spatial_softmax
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser
from roboalign_ray.inverse_dynamics.training import InverseTrainer, to_network

# --- parts ------------------------------------------------------------------------------------------------------------


@given(row=st.integers(0, 4), column=st.integers(0, 6))
def test_spatial_softmax_gives_the_place_of_a_peak(row: int, column: int) -> None:
    logits = torch.zeros(1, 2, 5, 7)
    logits[0, 0, row, column] = 100.0
    found = spatial_softmax(logits.flatten(2), (5, 7))[0].reshape(2, 2)  # y, then x; each of both maps
    torch.testing.assert_close(found[:, 0], torch.tensor([row / 2 - 1, column / 3 - 1]))
    torch.testing.assert_close(found[:, 1], torch.zeros(2), atol=1e-6, rtol=0)  # an even map: the middle


def test_actions_are_scaled_by_the_card_and_a_constant_one_keeps_its_value() -> None:
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(3, 2, 500), np.full(500, 0.25), rng.normal(0, 1, 500)], axis=1)
    card = ActionCard.make(
        ("delta_x [m]", "delta_y [m]", "gripper"),
        ("delta", "delta", "hold"),
        statistics=ActionStatistics.of(actions).model_dump(),
    )
    normaliser = ActionNormaliser.from_card(card)
    scaled = normaliser.to_model(actions)
    np.testing.assert_allclose(scaled[:, [0, 2]].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled[:, [0, 2]].std(0), 1)
    np.testing.assert_allclose(normaliser.to_physical(scaled), actions)
    np.testing.assert_allclose(normaliser.to_physical(np.full(3, 9.0))[1], 0.25)
    # no motion is the increment 0; a gripper has no such value
    np.testing.assert_allclose(normaliser.to_physical(normaliser.still)[0], 0, atol=1e-12)
    assert normaliser.still[2] == 0
    assert normaliser.rates.tolist() == [True, True, False]
    with pytest.raises(UserError, match="no statistics"):
        ActionNormaliser.from_card(card.model_copy(update={"statistics": None}))


def test_explained_variance_against_its_definition() -> None:
    rng = np.random.default_rng(1)
    truth = np.stack([rng.normal(0, 2, 20_000), np.full(20_000, 5.0)], axis=1)
    assert r_squared(truth, truth)[0] == 1
    assert np.isnan(r_squared(truth, truth)[1])
    mean = np.broadcast_to(truth.mean(0), truth.shape)
    assert r_squared(truth, mean)[0] == pytest.approx(0)
    assert r_squared(truth, truth + rng.normal(0, 1, truth.shape))[0] == pytest.approx(0.75, abs=0.02)
    assert r_squared(truth, -truth)[0] == pytest.approx(-3, abs=0.01)


@given(seed=st.integers(0, 1000), frames=st.integers(4, 12))
def test_a_shuffled_clip_has_every_frame_in_another_place(seed: int, frames: int) -> None:
    clip = np.arange(frames, dtype=np.uint8).reshape(1, frames, 1, 1, 1, 1)
    mixed = TRIALS["shuffled in time"](clip, np.random.default_rng(seed)).ravel()
    assert sorted(mixed) == list(range(frames))
    assert (mixed != np.arange(frames)).all()


def test_the_loss_is_hubers_and_the_uncertainty_teaches_the_mean_nothing() -> None:
    """Of one example whose error is known: gradients of the head's last bias against the closed form."""
    config = InverseTrainingConfig(
        steps=1,
        still=0,
        edge=0,
        spoiled=0,
        brightness=0,
        contrast=0,
        pixel_noise=0,
        warmup_steps=0,
        clip_norm=1e9,
    )
    frames, steps = made.clips(1, seed=0)
    network = InverseDynamics(made.NETWORK, 1, 2)
    normaliser = ActionNormaliser.from_card(made.motion_card())
    with torch.no_grad():
        mean, log_scale = network(to_network(frames[:, :3], "cpu"))
    error = mean.numpy()[0] - normaliser.to_model(steps[0, 1])
    told = InverseTrainer(network, config, normaliser).step(frames[:, :3], steps[:, :3])
    size = np.abs(error)
    huber = np.where(size < 1, error**2 / 2, size - 0.5).mean()
    scale = log_scale.numpy()[0]
    assert told["action_loss"] == pytest.approx(huber, rel=1e-5)
    assert told["uncertainty_loss"] == pytest.approx((size * np.exp(-scale) + scale).mean(), rel=1e-5)
    gradient = network.head[-1].bias.grad.numpy()
    np.testing.assert_allclose(gradient[:2], np.clip(error, -1, 1) / 2, rtol=1e-4)
    np.testing.assert_allclose(
        gradient[2:], config.uncertainty_weight * (1 - size * np.exp(-scale)) / 2, rtol=1e-4
    )


def test_a_resumed_training_makes_the_same_steps() -> None:
    frames, steps = made.clips(8, seed=5)
    normaliser = ActionNormaliser.from_card(made.motion_card())

    def fresh() -> InverseTrainer:
        torch.manual_seed(0)
        return InverseTrainer(InverseDynamics(made.NETWORK, 1, 2), made.TRAINING, normaliser, seed=3)

    whole, begun = fresh(), fresh()
    for number in range(4):
        whole.step(frames[:, number : number + 3], steps[:, number : number + 3])
    for number in range(2):
        begun.step(frames[:, number : number + 3], steps[:, number : number + 3])
    later = fresh()
    later.load_state_dict(begun.state_dict())
    for number in range(2, 4):
        later.step(frames[:, number : number + 3], steps[:, number : number + 3])
    for ours, theirs in zip(whole.result().parameters(), later.result().parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- a trained model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measure(made.trained_model(), *made.clips(24, seed=99), made.GATE)


def test_it_reads_unseen_steps_in_pixels_and_knows_how_well(measured: Measurement) -> None:
    for row in measured.dimensions:
        assert row.r2 is not None
        assert row.r2 > 0.9
        assert row.mean_error < 0.5  # pixels, of steps of up to 3
        assert row.mean_error <= row.rms_error
        assert 0.5 < row.within < 0.97
    assert [row.name for row in measured.dimensions] == list(made.NAMES)
    assert measured.actions == 24 * (made.CLIP - 1)


def test_it_follows_its_own_frames_and_the_gate_is_open(measured: Measurement) -> None:
    assert {row.trial for row in measured.trials} == set(TRIALS)
    assert all(row.passed and row.exact < row.changed for row in measured.trials), measured.table()
    measured.assert_open("here")
    measured.assert_open("here", [1.0, 0.2])


def test_the_gate_is_closed_to_a_model_of_shuffled_labels() -> None:
    found = measure(made.trained_model(labels="shuffled"), *made.clips(24, seed=99), made.GATE)
    assert all(row.r2 is not None and row.r2 < 0.2 for row in found.dimensions)
    with pytest.raises(
        UserError, match=r"gate of the inverse dynamics model is closed.*R² of delta_row"
    ) as error:
        found.assert_open("folder")
    assert "| delta_row [px] |" in error.value.details
    assert not any(row.passed for row in found.trials if row.trial == "frozen")


def test_dimensions_without_weight_are_not_asked_for(measured: Measurement) -> None:
    first, second = measured.dimensions
    poor = measured.model_copy(update={"dimensions": (first, second.model_copy(update={"r2": 0.1}))})
    poor.assert_open("here", [1.0, 0.0])
    with pytest.raises(UserError, match=r"R² of delta_column \[px\] is 0.10"):
        poor.assert_open("here", [1.0, 0.1])
    unknown = measured.model_copy(update={"dimensions": (first, second.model_copy(update={"r2": None}))})
    with pytest.raises(UserError, match="is not known"):
        unknown.assert_open("here", [1.0, 0.1])
    with pytest.raises(UserError, match="3 weights for 2 measured"):
        measured.assert_open("here", [1.0, 1.0, 1.0])


def test_it_is_less_sure_of_frames_in_which_nothing_can_be_read(measured: Measurement) -> None:
    model = made.trained_model()
    frames, _ = made.clips(12, seed=77)
    noise = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
    usual = model.uncertainty(model.read(frames))
    assert usual.shape == (12, made.CLIP - 1)
    assert (usual <= measured.uncertainty).mean() > 0.8
    assert model.uncertainty(model.read(noise)).min() > 3 * measured.uncertainty


def test_still_frames_hold_no_motion() -> None:
    frames, _ = made.clips(6, seed=31)
    frozen = np.repeat(frames[:, 4:5], 6, axis=1)
    assert np.abs(made.trained_model().read(frozen).actions).max() < 0.5


def test_an_action_depends_on_the_frames_around_it_alone() -> None:
    model = made.trained_model()
    frames, _ = made.clips(3, seed=40)
    whole = model.read(frames).actions
    np.testing.assert_allclose(model.read(frames[1:2]).actions[0], whole[1], atol=1e-4)
    changed = frames.copy()
    changed[:, 7:] = 0
    found = model.read(changed).actions
    np.testing.assert_allclose(found[:, :6], whole[:, :6], atol=1e-4)  # action 6 already sees frame 7
    assert (np.abs(found[:, 6] - whole[:, 6]) > 1e-3).any()
    # the clip's ends repeat their frame: the first action sees frames 0, 0, 1
    padded = np.concatenate([frames[:, :1], frames[:, :2]], axis=1)
    np.testing.assert_allclose(model.read(padded).actions[:, 1], whole[:, 0], atol=0.5)


def test_other_sizes_are_resized_and_views_are_found_by_name() -> None:
    model = made.trained_model(views=2)
    frames, steps = made.clips(8, seed=50, views=2)
    found = model.read(frames, ("front", "wrist")).actions
    assert r_squared(steps.reshape(-1, 2), found.reshape(-1, 2)).min() > 0.85
    turned = frames[:, :, ::-1]
    np.testing.assert_array_equal(model.read(turned, ("wrist", "front")).actions, found)
    with_more = np.concatenate([frames, frames[:, :, :1]], axis=2)
    np.testing.assert_array_equal(model.read(with_more, ("front", "wrist", "side")).actions, found)
    large = frames.repeat(2, axis=3).repeat(2, axis=4)
    np.testing.assert_allclose(model.read(large).actions, found, atol=0.3)
    with pytest.raises(UserError, match=r"no view 'wrist' \(views: front, side\)"):
        model.read(frames, ("front", "side"))
    with pytest.raises(UserError, match=r"no view 'front' \(views: they have no names\)"):
        model.read(frames, ())
    first = InverseModel(made.trained_model().network, ("",), model.card)
    one = first.read(frames[:, :, :1]).actions
    for names in ((), ("front", "wrist"), ("a", "b")):  # the first view, whatever it is called
        np.testing.assert_array_equal(first.read(frames, names).actions, one)
    with pytest.raises(UserError, match="clips of 1 views, the model has 2"):
        model.read(frames[:, :, :1])


def test_a_folder_holds_the_whole_model(tmp_path: Path, measured: Measurement) -> None:
    model = made.trained_model()
    model.save(tmp_path)
    measured.save(tmp_path)
    again = load_inverse_model(tmp_path)
    frames, _ = made.clips(2, seed=60)
    np.testing.assert_array_equal(again.read(frames).actions, model.read(frames).actions)
    np.testing.assert_array_equal(again.read(frames).std, model.read(frames).std)
    assert (again.views, again.card) == (model.views, model.card)
    assert Measurement.load(tmp_path) == measured


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("inverse_dynamics.json", "holds no inverse_dynamics.json; train a model with"),
        ("action_card.json", "holds no action_card.json"),
        ("model.safetensors", "cannot be read as weights"),
        ("measurement.json", "no measurement of an inverse dynamics model here"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_in_one_line(
    name: str, told: str, tmp_path: Path, measured: Measurement
) -> None:
    made.trained_model().save(tmp_path)
    measured.save(tmp_path)
    (tmp_path / name).unlink()
    read = Measurement.load if name == "measurement.json" else load_inverse_model
    with pytest.raises(UserError, match=told) as error:
        read(tmp_path)
    assert "\n" not in error.value.line()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    made.trained_model().save(tmp_path)
    path = tmp_path / "inverse_dynamics.json"
    described = json.loads(path.read_text())
    described["network"]["keypoints"] = 9
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_inverse_model(tmp_path)
    described["network"]["keypoints"] = -1
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match="cannot be read as description of an inverse dynamics model"):
        load_inverse_model(tmp_path)
    with pytest.raises(UserError, match="2 views, the network has 1"):
        InverseModel(InverseDynamics(made.NETWORK, 1, 2), ("a", "b"), made.motion_card())


def test_what_is_no_clip_is_refused() -> None:
    model = made.trained_model()
    frames, _ = made.clips(1, seed=0)
    for wrong in (frames[:, :1], frames[0], frames.astype(np.float32)):
        with pytest.raises(UserError, match="not uint8"):
            model.read(wrong)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="shorter than the 13 that one action"):
        InverseDynamicsConfig(network=InverseNetworkConfig(reach=6))
    with pytest.raises(ConfigError, match="does not end within"):
        InverseTrainingConfig(steps=10, warmup_steps=10)
    with pytest.raises(UserError, match="1 held-out clips are too few"):
        measure(made.trained_model(), *made.clips(1, seed=0), made.GATE)
