"""Flow-GRPO on rollouts of a real engine: states made again from seeds, whatever weights sampled them; refusals."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_denoiser import SIDE, VIEWS, write_tiny_denoiser

from roboalign_ray.alignment.advantages import group_advantages
from roboalign_ray.alignment.objectives.flow_grpo import log_ratio
from roboalign_ray.alignment.objectives.flow_objective import FlowGrpoObjective, SamplingPolicies
from roboalign_ray.alignment.objectives.protocol import Share
from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import UpdateResult, policy_update
from roboalign_ray.config import AlignmentConfig, RolloutConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.registry import open_world_model

LORA = {"rank": 2, "targets": ("down", "up"), "whole": ("embed.actions",)}
SEEDS = (3, 4, 5, 6)
SEGMENTED = {"refresh": {"policy": "reference_recent", "window": 2, "recent": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_denoiser(tmp_path_factory.mktemp("base") / "world_model")


class Learner:
    """A policy in plain PyTorch with plain gradient descent."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: Path, rate: float = 0.05, lora: Any = LORA, **changes: Any) -> None:
        self.config = AlignmentConfig(
            objective="flow_grpo",
            minibatch_prompts=1,
            group_size=4,
            kl_coefficient=0.0,
            diffusion={"lora": lora},  # type: ignore[arg-type]
            **changes,
        )
        made = build_objective(self.config)
        assert isinstance(made, FlowGrpoObjective)
        self.objective, self.passes, self.version = made, 0, 0
        self.model = made.open_policy(folder)
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], rate)
        made.begin(self, folder)

    def predict(self, item: Any) -> torch.Tensor:
        return self.model(*self.model.inputs(item, "cpu"))

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        self.optimizer.step()
        self.optimizer.zero_grad()
        return 0.0

    @contextmanager
    def whole_weights(self):  # type: ignore[no-untyped-def]
        yield self.model

    def update(self, *groups: ScoredGroup) -> UpdateResult:
        result = policy_update(self, groups, self.config, self.objective, version=self.version)
        self.version += 1
        return result

    def published(self) -> dict[str, torch.Tensor]:
        return {name: v.detach().clone() for name, v in self.objective.published(self.model).items()}


def engine_of(folder: Path, **changes: Any) -> Any:
    sampling = {"steps": 3, "fresh_noise": 0.7}
    return open_world_model(
        folder, RolloutConfig.model_validate({**SEGMENTED, "diffusion": sampling, **changes}), device="cpu"
    )


def prompt(horizon: int = 4) -> Prompt:
    generator = np.random.default_rng(1)
    frames = generator.integers(0, 256, (2, VIEWS, SIDE, SIDE, 3), dtype=np.uint8)
    return Prompt("window", frames[0], frames[1], generator.normal(size=(horizon, 2)).astype(np.float32))


def scored(rollout: Any, rewards: tuple[float, ...] = (0.1, 0.9, 0.4, 0.2)) -> ScoredGroup:
    return ScoredGroup(rollout, tuple(Scored(reward) for reward in rewards))


def test_every_clip_is_made_again_from_its_seeds_even_behind_a_branch(folder: Path) -> None:
    model = engine_of(folder)
    whole = model.rollout([prompt()], [SEEDS])[0]
    actions = prompt().actions[None]
    shared = model.step(model.begin([prompt()], [(8,)]), actions[:, :2])
    branched = model.rollouts(model.step(model.branch(shared, [0], [SEEDS]), actions[:, 2:]))[0]
    for rollout in (whole, branched):
        result = Learner(folder).update(scored(rollout))
        clips = rollout.payload.frames().shape[1]
        assert (result.size, result.unit) == (len(SEEDS) * clips * 2, "step")  # two of three steps have noise
        assert result.metrics["resampled_apart"] == 0
        assert result.metrics["ratio_distance_max"] < 1e-6
        assert result.metrics["policy_loss"] == pytest.approx(0, abs=1e-6)  # the mean of the advantages
        assert result.metrics["reference_kl"] == 0


def test_clips_of_older_weights_are_made_again_with_those(folder: Path) -> None:
    """A rollout whose segments two versions sampled, trained on by a third."""
    learner, model = Learner(folder), engine_of(folder)
    first = scored(model.rollout([prompt()], [SEEDS])[0])
    versions = [(0, learner.published())]
    for version in (1, 2):
        learner.update(first)
        versions.append((version, learner.published()))
    stale = model.rollout_again([prompt()], [SEEDS], versions[:2])[0]
    assert stale.versions == (0, 1)
    result = learner.update(scored(stale))
    assert result.metrics["resampled_apart"] == 0
    assert (
        result.metrics["ratio_distance_max"] > 1e-5
    )  # against the policies that sampled, not the one of now
    assert sorted(learner.objective.sampled.weights) == [0, 1, 2]
    told = Learner(folder, rate=5.0)
    told.update(first)
    told.objective.sampled.weights[0] = told.published()  # weights that did not sample it
    assert told.update(first).metrics["resampled_apart"] > 0.01


@pytest.mark.parametrize(("lora", "rate"), [(LORA, 2e-3), ({"rank": 0}, 5e-5)])
def test_good_samples_become_likelier_and_bad_ones_less(folder: Path, lora: Any, rate: float) -> None:
    """Along their advantages, against the policy that sampled; the group stays one of the first weights."""
    learner = Learner(folder, rate=rate, lora=lora, flow_grpo={"clip": 0.5, "policies": 8})
    group = scored(engine_of(folder).rollout([prompt(2)], [SEEDS])[0], (0.0, 1.0, 0.0, 0.0))
    for _ in range(5):
        learner.update(group)
    step = learner.objective.prepare(learner, [group], [group_advantages(group.scores)], Share(version=5))
    with torch.no_grad():
        grown = [
            log_ratio(learner.predict(item.clips), item.clips.old, item.fresh, item.slope)
            * item.clips.weights
            for item in step.items
        ]
    assert float(torch.cat(grown).sum()) > 0


def test_what_has_no_likelihood_is_refused(folder: Path) -> None:
    for changes, told in (
        ({"diffusion": {"steps": 3}}, "fresh_noise=0.0"),
        ({"diffusion": {"steps": 1, "fresh_noise": 0.7}}, "steps=1"),
        ({"diffusion": {"steps": 2, "fresh_noise": 0.7, "action_noise": 0.1}}, "action_noise=0.1"),
    ):
        rollout = engine_of(folder, **changes).rollout([prompt()], [SEEDS])[0]
        with pytest.raises(UserError, match=f"{told}.*have no likelihood"):
            Learner(folder).update(scored(rollout))


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("rollout.diffusion.fresh_noise=0", "rollout.diffusion.fresh_noise"),
        ("rollout.diffusion.steps=1", "rollout.diffusion.steps"),
        ("rollout.diffusion.steps=null", "rollout.diffusion.steps"),
        ("rollout.diffusion.action_noise=0.1", "rollout.diffusion.action_noise"),
        ("rollout.diffusion.history_noise=0.1", "rollout.diffusion.history_noise"),
        ("asynchrony.staleness=4", "alignment.flow_grpo.policies"),
        ("alignment.zero_stage=3", "alignment.zero_stage"),
    ],
)
def test_a_job_that_cannot_be_trained_is_told_before_it_starts(setting: str, where: str) -> None:
    good = [
        "alignment.objective=flow_grpo",
        "rollout.diffusion.steps=4",
        "rollout.diffusion.fresh_noise=0.7",
        "rollout.diffusion.action_noise=0",
    ]
    config = load_job("demo_diffusion", good)
    build_objective(config.alignment).check(config)
    config = load_job("demo_diffusion", [*good, setting])
    with pytest.raises(UserError) as caught:
        build_objective(config.alignment).check(config)
    assert caught.value.where == where
    assert "\n" not in caught.value.line()


def test_policies_are_kept_as_long_as_asked_for() -> None:
    kept = SamplingPolicies(2)
    with pytest.raises(UserError, match="weights 0"):
        kept.of(0)
    for version in (0, 2, 5):  # updates 1, 3 and 4 took no step
        kept.keep(version, {"w": torch.tensor([float(version)])})
    assert [float(kept.of(version)["w"]) for version in (1, 2, 3, 4, 5)] == [2, 2, 5, 5, 5]
    with pytest.raises(UserError, match=r"weights 0; the weights \[2, 5\] are kept"):
        kept.of(0)
    again = SamplingPolicies(2)
    again.load_state_dict(kept.state_dict())
    assert float(again.of(3)["w"]) == 5
    with pytest.raises(UserError):
        again.of(0)
