"""Every world model through the same contract, under each refresh policy that it knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_denoiser import write_tiny_denoiser
from tiny_job import make_tiny_job
from toy_world_model import install_toy, write_toy
from world_model_contract import CHECKS, Subject

from roboalign_ray.config import RefreshConfig, RolloutConfig
from roboalign_ray.world_model.protocol import ModelCard, Prompt
from roboalign_ray.world_model.registry import open_world_model, read_weights

HORIZON = 5
POLICIES = ("none", "swr", "token_window", "sinks", "reference_recent")
FRAME_POLICIES = ("none", "swr", "token_window", "reference_recent")
KINDS = [
    *(("token", policy) for policy in POLICIES),
    *(("diffusion", policy) for policy in FRAME_POLICIES),
    ("toy", "swr"),
    ("toy", "none"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    make_tiny_job(root)
    write_toy(root / "toy")
    install_toy(root / "site")
    write_tiny_denoiser(root / "diffusion")
    return {
        "token": root / "world_model",
        "toy": root / "toy",
        "diffusion": root / "diffusion",
        "site": root / "site",
    }


@pytest.fixture(autouse=True)
def _installed(folders, monkeypatch) -> None:
    monkeypatch.syspath_prepend(folders["site"])


def settings(policy: str) -> RolloutConfig:
    return RolloutConfig(refresh=RefreshConfig(policy=policy, window=2, recent=2, sink_tokens=2))


def make_prompts(card: ModelCard) -> list[Prompt]:
    """Pictures of coloured squares."""
    generator = np.random.default_rng(0)
    prompts = []
    for name in ("first", "second"):
        squares = generator.integers(0, 256, (2, card.views, 4, 4, 3), dtype=np.uint8)
        context, start = squares.repeat(card.height // 4, axis=2).repeat(card.width // 4, axis=3)
        actions = generator.normal(0, 2, (HORIZON, 2)).astype(np.float32)
        prompts.append(Prompt(name, context, start, actions, f"push the {name}"))
    return prompts


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def subject(request, folders, tmp_path_factory) -> Subject:
    kind, policy = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folders["site"])
        model = open_world_model(folders[kind], settings(policy))
        weights = read_weights(folders[kind])
    assert model.card.kind == kind
    generator = torch.Generator().manual_seed(0)
    other = {
        name: -value if kind == "toy" else value + torch.randn(value.shape, generator=generator)
        for name, value in weights.items()
    }
    return Subject(model, make_prompts(model.card), weights, other, tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract(subject, check) -> None:
    check(subject)


ANOTHER_PROCESS = """
import sys
import numpy as np
import roboalign_ray
from roboalign_ray.config import RefreshConfig, RolloutConfig
from roboalign_ray.world_model.registry import open_world_model
folder, refresh, state, out = sys.argv[1:]
model = open_world_model(folder, RolloutConfig(refresh=RefreshConfig.model_validate_json(refresh)))
with np.load(state, allow_pickle=False) as read:
    arrays = dict(read)
actions = arrays.pop("steps")
np.save(out, model.frames(model.step(model.load(arrays), actions)))
"""


@pytest.mark.parametrize(
    ("kind", "policy"), [("token", "token_window"), ("token", "none"), ("diffusion", "swr"), ("toy", "swr")]
)
def test_a_state_goes_on_in_another_process(folders, tmp_path, kind, policy) -> None:
    config = settings(policy)
    model = open_world_model(folders[kind], config)
    prompts = make_prompts(model.card)
    actions = np.stack([prompt.actions for prompt in prompts])
    state = model.step(model.begin(prompts, [(1, 2), (3, 4)]), actions[:, :3])
    np.savez(tmp_path / "state.npz", steps=actions[:, 3:], **model.save(state))
    arguments = [
        folders[kind],
        config.refresh.model_dump_json(),
        tmp_path / "state.npz",
        tmp_path / "out.npy",
    ]
    path = os.pathsep.join(
        [str(folders["site"]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = model.frames(model.step(state, actions[:, 3:]))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
