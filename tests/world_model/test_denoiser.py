"""The denoiser: what it begins as, what may reach its output, how views and actions matter; its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from roboalign_ray.config import ConfigError, DenoiserConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.conditioning import Inputs
from roboalign_ray.world_model.diffusion.denoising import clip_from, predict_state, residual_of, sample_clip
from roboalign_ray.world_model.diffusion.files import check_denoiser_files, load_denoiser, save_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser, _warp
from roboalign_ray.world_model.registry import read_description

CONFIG = DenoiserConfig(
    views=2, height=16, width=16, channels=(8, 16), history=(0, 1), action_dims=2, heads=2
)


def network(seed: int = 0, spread: float = 0.0, config: DenoiserConfig = CONFIG) -> Denoiser:
    """A network; with `spread` every weight is moved, so that nothing is zero by initialisation."""
    torch.manual_seed(seed)
    made = Denoiser(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight += spread * torch.randn_like(weight)
    return made.eval()


def inputs(rows: int = 2, config: DenoiserConfig = CONFIG) -> Inputs:
    height, width, views = config.height, config.width, config.views
    return Inputs(
        history=torch.rand(rows, views, len(config.history), 3, height, width) * 2 - 1,
        reference=torch.rand(rows, views, 3, height, width) * 2 - 1,
        actions=torch.rand(rows, config.past_actions + config.clip_frames, config.action_dims) * 2 - 1,
        level=torch.zeros(rows),
    )


def noise(rows: int = 2, config: DenoiserConfig = CONFIG) -> torch.Tensor:
    return torch.randn(rows, config.views, config.clip_frames, 3, config.height, config.width)


def test_an_untrained_network_mostly_repeats_the_newest_frame() -> None:
    torch.manual_seed(1)
    seen = inputs()
    made = sample_clip(network(), noise(), seen, steps=2, scale=0.15)
    share = np.e**2 / (np.e**2 + 2)  # of the moved newest frame among three sources
    rest = made[:, :, 0] - share * seen.history[:, :, 0] - (1 - share) / 2 * seen.reference
    assert float(rest.abs().mean()) < 0.05


def test_noise_reaches_the_output_only_through_the_network() -> None:
    """With a head of zeros the output does not depend on the noisy clip: there is no skip that leaks noise."""
    torch.manual_seed(2)
    model, seen = network(spread=0.1), inputs()
    torch.nn.init.zeros_(model.head.weight)
    made = [
        model(state, torch.rand(2), seen.history, seen.reference, seen.actions, seen.level)
        for state in (noise(), 100 * noise())
    ]
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("clip", [1, 2])
def test_each_view_depends_on_the_others_and_every_input_matters(clip: int) -> None:
    torch.manual_seed(3)
    config = CONFIG.model_copy(update={"clip_frames": clip})
    model, seen, state = network(spread=0.1, config=config), inputs(config=config), noise(config=config)
    given = [state, torch.rand(2), seen.history, seen.reference, seen.actions, torch.rand(2) * 0.1]
    for tensor in given:
        tensor.requires_grad_()
    made = model(*given)
    assert made.shape == (2, 2, clip, 3, 16, 16)
    assert float(made.detach().abs().max()) <= 1
    made[0, 0].sum().backward()
    for tensor in given:
        assert float(tensor.grad[0].abs().sum()) > 0
        assert float(tensor.grad[1].abs().sum()) == 0  # rows do not mix
    assert float(given[2].grad[0, 1].abs().sum()) > 0  # the other view's history


def test_a_frame_moved_by_whole_pixels_is_the_frame_shifted() -> None:
    frame = torch.rand(1, 3, 12, 10)
    motion = torch.zeros(1, 2, 2, 12, 10)
    motion[:, 0, 0], motion[:, 1, 1] = 3.0, -2.0  # x to the right, y upwards: where each pixel comes from
    moved = _warp(frame, motion)
    torch.testing.assert_close(moved[0, 0, :, :, :7], frame[0, :, :, 3:])
    torch.testing.assert_close(moved[0, 1, :, 2:, :], frame[0, :, :10, :])
    torch.testing.assert_close(
        moved[0, 0, :, :, 7:], frame[0, :, :, -1:].expand(3, 12, 3)
    )  # the border repeats


def test_states_and_clips_are_inverse_and_one_step_is_the_first_prediction() -> None:
    torch.manual_seed(4)
    model, seen, start = network(spread=0.1), inputs(), noise()
    clip = torch.rand_like(start)
    torch.testing.assert_close(clip_from(residual_of(clip, seen, 0.3), seen, 0.3), clip)
    once = sample_clip(model, start, seen, steps=1, scale=0.3)
    first = predict_state(model, start, torch.ones(2), seen, 0.3)
    torch.testing.assert_close(once, clip_from(first, seen, 0.3))
    assert not torch.allclose(sample_clip(model, start, seen, steps=3, scale=0.3), once)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"height": 20}, "height 20 is not a multiple of 8"),
        ({"heads": 3}, "8 channels do not divide among 3 heads"),
        ({"channels": (8, 2**40)}, "less than or equal to 65536"),
        ({"largest_motion": float("inf")}, "less than or equal to 8192"),
        ({"history": (0, 2, 2)}, "and ascend; sort"),
        ({"history": (1, 2)}, "does not begin with 0"),
    ],
)
def test_impossible_networks_are_refused(changes: dict, told: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match=told):
        DenoiserConfig.model_validate({**CONFIG.model_dump(), **changes})


# --- the folder --------------------------------------------------------------------------------------------------


def card(dims: int = 2) -> ActionCard:
    actions = np.random.default_rng(0).normal(size=(50, dims))
    statistics = ActionStatistics.of(actions)
    return ActionCard.make([f"a{n}" for n in range(dims)], ["delta"] * dims, statistics=statistics)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_denoiser(tmp_path / "model", network(spread=0.1), NoiseConfig(steps=3), card())
    return tmp_path / "model"


def test_a_folder_gives_the_same_network_back(folder: Path) -> None:
    saved = network(spread=0.1)
    loaded, told = load_denoiser(folder)
    assert (loaded.config, told.noise.steps, told.card) == (CONFIG, 3, card())
    assert told.scaling.low == told.card.statistics.p01
    assert not loaded.training
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert read_description(folder).kind == "diffusion"


def test_half_precision_halves_the_file_and_opens_as_float32(folder: Path, tmp_path: Path) -> None:
    saved = network(spread=0.1)
    save_denoiser(tmp_path / "half", saved, NoiseConfig(), card(), dtype=torch.float16)
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, tmp_path / "half")]
    assert sizes[1] < 0.65 * sizes[0]
    loaded, _ = load_denoiser(tmp_path / "half")
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def edit(name: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return edited


def weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return changed


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGED = {
    "no description": (lambda folder: (folder / "denoiser.json").unlink(), "holds no denoiser.json"),
    "not JSON": (lambda folder: (folder / "denoiser.json").write_text("{"), "denoiser.json.*cannot be read"),
    "another format": (edit("denoiser.json", lambda v: v.update(format=2)), "format"),
    "an unknown key": (
        edit("denoiser.json", lambda v: v["denoiser"].update(layers=2)),
        "unknown key 'layers'",
    ),
    "a wrong value": (edit("denoiser.json", lambda v: v["denoiser"].update(patch=-1)), "patch"),
    "no views that fit": (edit("denoiser.json", lambda v: v["denoiser"].update(height=20)), "multiple of 8"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut short": (cut_short, "cannot be read as weights"),
    "a weight missing": (weights(lambda w: w.pop("head.bias")), "'head.bias' is absent"),
    "a weight too many": (weights(lambda w: w.update(extra=torch.zeros(1))), "'extra' is .1., .* absent"),
    "of another size": (edit("denoiser.json", lambda v: v["denoiser"].update(channels=[8, 24])), "wants"),
    "no action card": (lambda folder: (folder / "action_card.json").unlink(), "holds no action_card.json"),
    "another robot's card": (lambda folder: card(3).save(folder), "3 dimensions, denoiser.json 2"),
    "a card without figures": (
        lambda folder: ActionCard.make(["a", "b"], ["delta"] * 2).save(folder),
        "no statistics",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_folder_is_refused_in_one_line(kind: str, folder: Path) -> None:
    damage, told = DAMAGED[kind]
    damage(folder)
    with pytest.raises(UserError, match=told) as raised:
        check_denoiser_files(folder)
    assert str(folder) in raised.value.line()
    assert "\n" not in raised.value.line()
