"""Alignment jobs of toy size, one for each kind of world model and objective that must keep the same promises.

    @of_kinds()                             every kind; those marked slow here run with `-m slow`
    @of_kinds(slow=("diffusion_nft",))      the same, and these are slow in this test
    def test_…(job, kind): …

Test modules define the fixtures `kind` (`kind_asked_for`) and `job` (`kind.make(folder)`), both of module scope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_denoiser import tiny_network, tiny_sizes
from tiny_job import SIZE, make_tiny_job

from roboalign_ray.config import JobConfig, NoiseConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.world_model.diffusion.adapters import whole_weights
from roboalign_ray.world_model.diffusion.files import save_denoiser
from roboalign_ray.world_model.registry import read_weights

LORA = {"rank": 2, "targets": ("down", "up", "head")}


@dataclass(frozen=True)
class AlignKind:
    """A world model and an objective.

    Attributes:
        name: of the objective.
        world_model: kind of the world model.
        make: writes a job into a folder; keywords are sections that are merged into the config, as for `make_tiny_job`.
        curves: names of figures that updates tell.
        correction: `asynchrony.off_policy.correction` of runs with stale groups.
        stages: ZeRO stages that the objective can be trained with.
        tolerance: how far weights may differ where groups were rolled out in batches of another size.
        slow: whether all its tests are slow, because another kind covers the same code.
    """

    name: str
    world_model: str
    make: Callable[..., JobConfig]
    curves: frozenset[str]
    correction: str = "none"
    stages: tuple[int, ...] = (1, 2)
    tolerance: float = 0.0
    slow: bool = False


def denoiser_job(
    objective: str, lora: dict[str, Any], winner: str, **sampling: Any
) -> Callable[..., JobConfig]:
    """Makes the tiny job with a denoiser for a world model, and groups behind self-generated histories."""

    def make(folder: Path, **changes: Any) -> JobConfig:
        sections: dict[str, Any] = {
            "alignment": {
                "objective": objective,
                "learning_rate": 1e-2,
                "checkpoint_every": 1,
                "diffusion": {"micro_batch_clips": 8, "lora": lora},
            },
            "rollout": {
                "refresh": {"policy": "none"},
                "diffusion": sampling,
                "branching": {"first": 2, "most": 4, "groups_per_clip": 2, "winner": winner},
            },
        }
        for name, value in changes.items():
            sections[name] = {**sections.get(name, {}), **value}
        return with_denoiser(make_tiny_job(folder, **sections), folder)

    return make


def with_denoiser(config: JobConfig, folder: Path) -> JobConfig:
    """The job with a denoiser in the place of its token model in the same folder."""
    card = ActionCard.load(folder / "world_model")
    assert card is not None
    place = folder / "denoiser"
    sizes = tiny_sizes(views=1, height=SIZE, width=SIZE)
    save_denoiser(place, tiny_network(sizes), NoiseConfig(steps=2), card)
    return config.model_copy(update={"world_model_weights": str(place)})


_CLIP_CURVES = frozenset({"base_velocity_distance", "reward_deviation", "equal_rewards", "policy_loss"})
KINDS = {
    kind.name: kind
    for kind in (
        AlignKind(
            name="grpo",
            world_model="token",
            make=make_tiny_job,
            curves=frozenset({"reference_kl", "clip_fraction", "entropy", "policy_loss"}),
            correction="decoupled",
            stages=(1, 2, 3),
            tolerance=1e-6,
        ),
        AlignKind(
            name="diffusion_nft",
            world_model="diffusion",
            make=denoiser_job("diffusion_nft", LORA, "sampled", action_noise=0.3),
            curves=_CLIP_CURVES | {"old_distance"},
        ),
        AlignKind(
            name="flow_grpo",
            world_model="diffusion",
            make=denoiser_job("flow_grpo", LORA, "sampled", steps=3, fresh_noise=0.7),
            curves=_CLIP_CURVES | {"reference_kl", "clip_fraction", "resampled_apart"},
            slow=True,
        ),
        AlignKind(
            name="softmax_contrastive",
            world_model="diffusion",
            make=denoiser_job("softmax_contrastive", {"rank": 0}, "best", action_noise=0.3),
            curves=_CLIP_CURVES | {"old_distance"},
            slow=True,
        ),
    )
}


def of_kinds(slow: Sequence[str] = (), leave_out: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Parametrises a test over the kinds through the fixture `kind`.

    Args:
        slow: kinds that are slow in this test.
        leave_out: kinds that it says nothing about.
    """
    params = [
        pytest.param(name, id=name, marks=[pytest.mark.slow] if kind.slow or name in slow else [])
        for name, kind in KINDS.items()
        if name not in leave_out
    ]
    return pytest.mark.parametrize("kind", params, indirect=True, scope="module")


def kind_asked_for(request: pytest.FixtureRequest) -> AlignKind:
    """The kind of a test's parameter; that of tokens where it has none."""
    return KINDS[getattr(request, "param", "grpo")]


def whole(job: JobConfig, published: dict[str, Any]) -> dict[str, np.ndarray]:
    """All weights that published ones stand for: adapters change the job's base, other weights take its place."""
    base = read_weights(Path(job.world_model_weights))
    return {name: np.asarray(value) for name, value in whole_weights(base, published).items()}
