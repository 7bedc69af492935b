"""Objectives of a diffusion world model: the rows that they train on, their policies, and what they publish."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_groups import CLIP, diffusion_folder, diffusion_group

from roboalign_ray.alignment.advantages import GroupAdvantages, frame_advantages, group_advantages
from roboalign_ray.alignment.objectives.diffusion import DiffusionObjective
from roboalign_ray.alignment.objectives.diffusion_batch import ClipBatch, clip_batches
from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.alignment.objectives.spread import spread_figures
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import UpdateResult, policy_update
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.config.alignment_diffusion import DiffusionAlignmentConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.diffusion.adapters import whole_weights
from roboalign_ray.world_model.diffusion.files import load_denoiser
from roboalign_ray.world_model.diffusion.rollout import diffusion_payload

LORA = {"rank": 2, "targets": ("down", "up"), "whole": ("embed.actions",)}
NONE = {"rank": 0}
SCALE = 0.3  # of the tiny model's residuals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffusion_folder(tmp_path_factory.mktemp("base") / "world_model")


class Learner:
    """A policy in plain PyTorch with plain gradient descent."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(
        self, folder: Path, rate: float = 0.05, objective: str = "diffusion_nft", **diffusion: Any
    ) -> None:
        self.config = AlignmentConfig(
            objective=objective,
            minibatch_prompts=2,
            group_size=4,
            diffusion={"lora": NONE} | diffusion,  # type: ignore[arg-type]
        )
        objective_made = build_objective(self.config)
        assert isinstance(objective_made, DiffusionObjective)
        self.objective, self.passes = objective_made, 0
        self.model = self.objective.open_policy(folder)
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], rate)
        self.objective.begin(self, folder)

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

    def update(self, groups: list[ScoredGroup]) -> UpdateResult:
        return policy_update(self, groups, self.config, self.objective)


def rows_of(
    folder: Path, groups: list[ScoredGroup], advantages: list[GroupAdvantages] | None = None, **config: Any
) -> ClipBatch:
    """All rows in one batch, advantages as weights."""
    settings = DiffusionAlignmentConfig(micro_batch_clips=1000, **config)
    advantages = advantages or [group_advantages(group.scores) for group in groups]
    (batch,), count = clip_batches(groups, advantages, load_denoiser(folder)[1], settings, lambda a: a)
    assert count == len(batch.time)
    return batch


def test_rows_are_the_clips_of_the_valid_samples_made_noisy(folder: Path) -> None:
    group = diffusion_group(3, (0.1, None, 0.4))
    batch, frames = rows_of(folder, [group]), diffusion_payload(group.rollout).frames()
    given = diffusion_payload(group.rollout).start[1]
    assert len(batch.time) == 2 * 2
    row = 0
    for clip in range(2):
        for sample in (0, 2):
            first = CLIP * clip
            newest = given[-1] if clip == 0 else frames[sample, first - 1]
            change = (frames[sample, first : first + CLIP].astype(float) - newest) / 127.5 / SCALE
            clean = np.moveaxis(change, (0, 4), (1, 2))  # [V, n, 3, H, W]
            np.testing.assert_allclose(batch.clean[row].numpy(), clean, atol=1e-4)
            assert torch.equal(batch.inputs.history[row, :, 0], _signed(newest))
            row += 1
    assert batch.weights.tolist() == pytest.approx(2 * [-(0.5**0.5), 0.5**0.5], rel=1e-2)
    t = batch.time.view(-1, 1, 1, 1, 1, 1)
    noise = (batch.state - (1 - t) * batch.clean) / t
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    assert abs(float(noise.mean())) < 0.1
    assert len(torch.unique(noise)) > 0.99 * noise.numel()  # no two rows share their noise


def _signed(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(frame, -1, -3).astype(np.float32)) / 127.5 - 1


def test_a_row_does_not_depend_on_what_is_beside_it(folder: Path) -> None:
    one, other = diffusion_group(1, (0.1, 0.9, 0.4)), diffusion_group(2, (0.3, 0.9, None))
    both, alone = rows_of(folder, [one, other]), rows_of(folder, [other])
    assert torch.equal(both.state[-len(alone.time) :], alone.state)
    assert torch.equal(both.time[-len(alone.time) :], alone.time)


def test_times_are_those_of_the_sampler_or_uniform(folder: Path) -> None:
    groups = [diffusion_group(seed, (0.1, 0.9, 0.4), steps=4) for seed in range(6)]
    drawn = rows_of(folder, groups, times_per_clip=3).time
    assert set(drawn.tolist()) == {1.0, 0.75, 0.5, 0.25}
    assert len(drawn) == 6 * 2 * 3 * 3
    uniform = rows_of(folder, groups, times="uniform", least_time=0.4, times_per_clip=3).time
    assert 0.4 <= float(uniform.min()) < 0.45
    assert float(uniform.max()) > 0.95
    assert float(uniform.mean()) == pytest.approx(0.7, abs=0.06)


def test_drawn_clips_are_the_same_for_all_samples_of_a_group(folder: Path) -> None:
    seen = set()
    for seed in range(8):
        group = diffusion_group(seed, (0.1, 0.9), versions=(0, 0, 1))
        clips, all_clips = rows_of(folder, [group], clips_per_rollout=1), rows_of(folder, [group])
        assert len(clips.time) == 2
        matches = [n for n in range(3) if torch.equal(all_clips.clean[2 * n : 2 * n + 2], clips.clean)]
        seen.update(matches)
        assert len(matches) == 1
    assert seen == {0, 1, 2}


def test_with_credit_by_frame_a_clip_has_the_mean_of_its_frames(folder: Path) -> None:
    group = diffusion_group(5, (0.0, 0.0))
    per_frame = np.array([[0.0, 1.0, 5.0, 0.0], [1.0, 0.0, 0.0, 3.0]])
    advantages = frame_advantages([Scored(0.0, per_frame=row) for row in per_frame], 0.5)
    weights = rows_of(folder, [group], [advantages]).weights
    expected = advantages.values.reshape(2, 2, CLIP).mean(2).T.reshape(-1)
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_spread_is_told_relative_to_the_mean_reward() -> None:
    groups = [diffusion_group(0, (0.9, 1.1, None)), diffusion_group(1, (0.5, 0.5, 0.5))]
    figures = spread_figures([*groups, diffusion_group(2, (0.3, None, None))])
    assert figures == {"reward_deviation": pytest.approx(0.2 / 2**0.5 / 2), "equal_rewards": 0.5}
    assert spread_figures([diffusion_group(2, (0.3, None))])["equal_rewards"] == 1.0
    opposite = spread_figures([diffusion_group(3, (-0.9, -1.1))])
    assert opposite["reward_deviation"] == pytest.approx(0.2 / 2**0.5)


def test_figures_of_a_step_are_told_once(folder: Path) -> None:
    run = Learner(folder)
    result = run.update([diffusion_group(seed, (0.9, 1.1, None)) for seed in range(4)])
    assert result.steps == 2
    assert result.metrics["reward_deviation"] == pytest.approx(0.2 / 2**0.5)
    assert result.metrics["equal_rewards"] == 0


@pytest.mark.parametrize("lora", [NONE, LORA])
def test_the_old_policy_stays_behind_from_the_first_update_on(folder: Path, lora: Any) -> None:
    groups = [diffusion_group(seed, (0.1, 0.9, 0.4)) for seed in range(2)]
    run = Learner(folder, lora=lora)
    assert run.update(groups).metrics["old_distance"] == 0  # the first loss sees both where they began
    second = run.update(groups).metrics
    assert 0 < second["old_distance"] < second["old_distance_max"]
    assert second["base_velocity_distance"] > 0


@pytest.mark.parametrize("objective", ["diffusion_nft", "softmax_contrastive"])
def test_descent_brings_the_prediction_nearer_to_good_clips_than_to_bad_ones(
    folder: Path, objective: str
) -> None:
    """Each sample is compared with itself before: the network does not see which one was good."""
    group = diffusion_group(4, (0.0, 1.0, 0.0, 0.0), versions=(0,))
    run = Learner(folder, objective=objective, rate=0.02, regulariser=0.0)
    batch = rows_of(folder, [group])

    def errors() -> torch.Tensor:
        with torch.no_grad():
            return (run.predict(batch) - batch.clean).square().flatten(1).mean(1)

    before = errors()
    for _ in range(20):
        run.update([group])
    change = errors() - before
    assert float(change[1]) < 0
    assert float(change[1]) < float(change[[0, 2, 3]].min())


def test_a_run_that_never_moves_ends_with_one_line(folder: Path) -> None:
    run, groups = Learner(folder, rate=0.0), [diffusion_group(seed, (0.1, 0.9)) for seed in range(2)]
    run.update(groups)
    run.update(groups)
    with pytest.raises(UserError, match="for 3 updates: nothing is learned"):
        run.update(groups)


def test_an_update_without_a_step_leaves_the_old_policy(folder: Path) -> None:
    run = Learner(folder, rate=0.0)
    for _ in range(5):
        run.update([diffusion_group(0, (None, None)), diffusion_group(1, (0.3, None))])
    assert run.objective.old.updates == 0


def test_with_adapters_only_those_travel_and_make_the_old_policy(folder: Path) -> None:
    run = Learner(folder, lora=LORA)
    for _ in range(2):
        run.update([diffusion_group(seed, (0.1, 0.9, 0.4)) for seed in range(2)])
    published = run.objective.published(run.model)
    network = load_denoiser(folder)[0]
    names = {name for name in published if not name.endswith((".down", ".up"))}
    assert names == {name for name, _ in network.named_parameters() if "embed.actions" in name}
    sizes = [sum(v.numel() for v in some.values()) for some in (published, dict(network.named_parameters()))]
    assert sizes[0] < 0.5 * sizes[1]
    network.load_state_dict(whole_weights(network.state_dict(), published))
    batch = rows_of(folder, [diffusion_group(1, (0.1, 0.9))])
    arguments = run.model.inputs(batch, "cpu")
    clean = (network(*arguments) - batch.inputs.newest) / SCALE
    torch.testing.assert_close(clean, run.model.clean_with(run.objective.old.weights, batch, "cpu"))
    assert not torch.allclose(clean, run.model(*arguments), atol=1e-5)  # not the trained policy


@pytest.mark.parametrize("lora", [NONE, LORA])
def test_the_trained_policy_can_be_saved_too(folder: Path, tmp_path: Path, lora: Any) -> None:
    run = Learner(folder, lora=lora)
    run.update([diffusion_group(seed, (0.1, 0.9, 0.4)) for seed in range(2)])
    run.model.save(tmp_path / "trained")
    network, described = load_denoiser(tmp_path / "trained")
    assert described == load_denoiser(folder)[1]
    batch = rows_of(folder, [diffusion_group(1, (0.1, 0.9))])
    arguments = run.model.inputs(batch, "cpu")
    clean = (network(*arguments) - batch.inputs.newest) / SCALE
    torch.testing.assert_close(clean, run.model(*arguments), rtol=1e-4, atol=1e-5)
    base = run.model.clean_with(run.objective.base, batch, "cpu")
    assert not torch.allclose(clean, base, atol=1e-5)
    torch.testing.assert_close(base, (load_denoiser(folder)[0](*arguments) - batch.inputs.newest) / SCALE)


def test_what_cannot_be_trained_is_refused(folder: Path, tmp_path: Path) -> None:
    job = load_job("demo", ["alignment.objective=diffusion_nft", "alignment.zero_stage=3"])
    with pytest.raises(UserError, match=r"alignment.zero_stage: .*ZeRO 3"):
        build_objective(job.alignment).check(job)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no denoiser"):
        Learner(tmp_path / "empty")
    with pytest.raises(UserError, match=r"lora.targets: no weight"):
        Learner(folder, lora=LORA | {"targets": ("attn",)})
