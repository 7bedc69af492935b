"""What update loop, learner and checkpoints rely on, of every objective: micro-batches, ranks, resume, empty steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_objective
from diffusion_groups import diffusion_folder, diffusion_group
from toy_objective import ToyObjective, toy_folder, toy_group

from roboalign_ray.alignment.advantages import group_advantages
from roboalign_ray.alignment.objectives.diffusion_batch import clip_batches
from roboalign_ray.alignment.objectives.protocol import Objective, PolicyModel, Share, merge_metrics
from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import UpdateResult, policy_update
from roboalign_ray.config import AlignmentConfig, WorldModelConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.foundation.storage.state_files import read_state, write_state
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.diffusion.noise_schedule import fresh_deviation, step_mean
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment, token_payload
from roboalign_ray.world_model.token.transformer import build_model, save_pretrained, token_logprobs

LAYOUT = SequenceLayout(context_tokens=4, dynamics_tokens=3, action_tokens=2, codes=12, action_bins=5)
REWARDS = (0.1, 0.9, 0.4)
NOW = 1  # version of the weights that updates begin with


@dataclass(frozen=True)
class Case:
    """An objective with its world model.

    Attributes:
        name: of the objective, as a profile has it.
        folder: writes the world model.
        group: scored rollouts, from a seed and a reward for each sample (None: it failed).
        regulariser: gradients of the regulariser alone, by parameter name.
        small: settings of one sample a micro-batch.
        free: settings without a regulariser.
        settings: others, of all in one micro-batch.
        catch_up: makes auxiliary policies equal to the trained one again, where the loss has another term for their
            difference; the frozen reference stays.
    """

    name: str
    folder: Callable[[Path], Path]
    group: Callable[[int, Sequence[float | None]], ScoredGroup]
    regulariser: Callable[[PolicyModel, Objective, list[ScoredGroup]], dict[str, torch.Tensor]]
    small: dict[str, Any] = field(default_factory=lambda: {"micro_batch_tokens": 1})
    free: dict[str, Any] = field(default_factory=lambda: {"kl_coefficient": 0.0})
    settings: dict[str, Any] = field(default_factory=lambda: {"micro_batch_tokens": 10_000})
    catch_up: Callable[[Run], None] = lambda run: None
    off_policy: OffPolicyConfig | None = None

    def config(self, **changes: Any) -> AlignmentConfig:
        settings = {
            "objective": self.name,
            "prompts_per_update": 4,
            "minibatch_prompts": 2,
            "group_size": len(REWARDS),
            "learning_rate": 1e-2,
            "kl_coefficient": 0.1,
        }
        return AlignmentConfig(**(settings | self.settings | changes))

    def run(self, folder: Path, **changes: Any) -> Run:
        return Run(self, folder, self.config(**changes))


class Run:
    """A policy in plain PyTorch and its objective: `LearnerPolicy`.

    Attributes:
        gradients: of every optimizer step, by parameter name.
        moves: whether steps change the weights.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, case: Case, folder: Path, config: AlignmentConfig) -> None:
        self.config, self.objective = config, build_objective(config, case.off_policy)
        self.model = self.objective.open_policy(folder)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate)
        self.passes, self.backwards, self.moves = 0, 0, True
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.objective.begin(self, folder)

    def predict(self, item: Any) -> Any:
        self.passes += 1
        return self.model(*self.model.inputs(item, self.device))

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.backwards += 1
        loss.backward()

    def step(self) -> float:
        self.gradients.append(gradients_of(self.model))
        if self.moves:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return 0.0

    @contextmanager
    def whole_weights(self) -> Iterator[PolicyModel]:
        yield self.model

    def perturb(self) -> None:
        """Leave the auxiliary policies behind."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in self.model.parameters():
                if value.requires_grad:
                    value += 0.05 * torch.randn(value.shape, generator=generator)

    def update(self, groups: list[ScoredGroup], rank: int = 0, ranks: int = 1) -> UpdateResult:
        return policy_update(self, groups, self.config, self.objective, rank=rank, ranks=ranks, version=NOW)

    def state(self) -> dict[str, Any]:
        """Of policy, optimizer and objective."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        return state | {"objective": self.objective.state_dict()}

    def save(self, path: Path) -> None:
        write_state(path, self.state() | {"optimizer": self.optimizer.state_dict()})

    def load(self, path: Path) -> None:
        state = read_state(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- GRPO on tokens ----------------------------------------------------------------------------------------------


def token_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = WorldModelConfig(hidden=16, layers=1, heads=2, kv_heads=2, ffn=24, action_dims=2)
    save_pretrained(build_model(sizes, LAYOUT), LAYOUT, folder)
    ActionBinner((-1.0, -1.0), (1.0, 1.0), LAYOUT.action_bins).save(folder)
    return folder


def token_group(seed: int, rewards: Sequence[float | None]) -> ScoredGroup:
    """Two segments, of older weights and of those of now."""
    generator, samples = np.random.default_rng(seed), len(rewards)

    def segment(frames: int, version: int) -> TokenSegment:
        tokens = generator.integers(0, 12, (samples, frames, 3), dtype=np.int32)
        return TokenSegment(
            context=generator.integers(0, 12, (1, 4), dtype=np.int32),
            given=generator.integers(0, 12, (1, 1, 3), dtype=np.int32),
            actions=generator.integers(0, 5, (frames, 2), dtype=np.int32),
            tokens=tokens,
            logprobs=-generator.uniform(2.3, 2.7, tokens.shape).astype(np.float32),
            version=version,
        )

    payload = TokenPayload((segment(2, NOW - 1), segment(1, NOW)))
    rollout = Rollout(f"p{seed}", "", tuple(range(samples)), payload, RolloutCost(np.zeros(3)))
    scores = tuple(Failed("lost") if reward is None else Scored(reward) for reward in rewards)
    return ScoredGroup(rollout, scores)


def token_regulariser(model: Any, objective: Any, groups: list[ScoredGroup]) -> dict[str, torch.Tensor]:
    """beta times the mean of exp(d) - d - 1 over all tokens, one sample and segment at a time."""
    total, count = torch.zeros(()), 0
    for group in groups:
        for segment in token_payload(group.rollout).segments:
            frames = segment.tokens.shape[1] + 1
            for tokens in segment.tokens:
                codes = np.concatenate([segment.given[0], tokens])[None]
                row = torch.from_numpy(LAYOUT.assemble(segment.context, codes, segment.actions[None]))
                now = token_logprobs(model.model, row, LAYOUT, frames)
                with torch.no_grad():
                    before = token_logprobs(objective.frozen.model, row, LAYOUT, frames)
                total = total + ((before - now).exp() - (before - now) - 1).sum()
                count += now.numel()
    (objective.config.kl_coefficient * total / count).backward()
    found = gradients_of(model)
    model.zero_grad()
    return found


# --- the toy -----------------------------------------------------------------------------------------------------


def toy_rows(groups: list[ScoredGroup]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States with the noise of the objective's first draws, actions, advantages; of the valid samples."""
    generator, parts = torch.Generator().manual_seed(7), []
    for group in groups:
        weighed, rollout = group_advantages(group.scores), group.rollout
        kept = np.flatnonzero(weighed.valid)
        noise = torch.randn((len(kept), toy_objective.STATES), generator=generator).numpy()
        states = rollout.states[kept] + toy_objective.NOISE * noise
        parts.append((states, rollout.actions[kept], weighed.values[kept]))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def toy_gradient(model: Any, objective: Any, groups: list[ScoredGroup]) -> dict[str, torch.Tensor]:
    weight, bias = (value.detach().numpy() for value in model.parameters())
    old = tuple(value.numpy() for value in objective.old.parameters())
    found = toy_objective.gradient(weight, bias, old, toy_rows(groups), objective.config.kl_coefficient)
    names = [name for name, _ in model.named_parameters()]
    return {name: torch.from_numpy(value).float() for name, value in zip(names, found, strict=True)}


def of_tokens(**off_policy: Any) -> Case:
    return Case(
        "grpo", token_folder, token_group, token_regulariser, off_policy=OffPolicyConfig(**off_policy)
    )


# --- clips of a diffusion world model --------------------------------------------------------------------------------

LORA = {"rank": 2, "targets": ("down", "up", "head"), "whole": ("embed.actions",)}


def clip_regulariser(model: Any, objective: Any, groups: list[ScoredGroup]) -> dict[str, torch.Tensor]:
    """c times the mean squared difference of velocities (x_t - x) / t, one row at a time."""
    config, total, count = objective.config.diffusion, torch.zeros(()), 0
    advantages = [group_advantages(group.scores) for group in groups]
    one = config.model_copy(update={"micro_batch_clips": 1})
    for row in clip_batches(groups, advantages, model.folder, one, lambda values: values)[0]:
        t = row.time.view(-1, 1, 1, 1, 1, 1)
        now = (row.state - model(*model.inputs(row, "cpu"))) / t
        base = (row.state - model.clean_with(objective.base, row, "cpu")) / t
        total = total + (now - base).square().mean()
        count += 1
    (config.regulariser * total / count).backward()
    found = gradients_of(model)
    model.zero_grad()
    return found


def step_regulariser(model: Any, objective: Any, groups: list[ScoredGroup]) -> dict[str, torch.Tensor]:
    """c times the mean KL of the steps to the base's, each from the means of both steps."""
    policy, total, count = Probe(model), torch.zeros(()), 0
    advantages, level = [group_advantages(group.scores) for group in groups], FRESH["fresh_noise"]
    for item in objective.prepare(policy, groups, advantages, Share(version=NOW)).items:
        row, times = item.clips, [1.0, 2 / 3, 1 / 3]
        now = min(times, key=lambda t: abs(t - float(row.time[0])))
        following = now - 1 / 3
        deviation = fresh_deviation(now, following, level)
        trained = model(*model.inputs(row, "cpu"))
        base = model.clean_with(objective.base, row, "cpu")
        means = [step_mean(clean, row.state, now, following, deviation) for clean in (trained, base)]
        total = total + ((means[0] - means[1]) ** 2 / (2 * deviation**2)).flatten(1).mean(1).sum()
        count += len(row.time)
    (objective.config.kl_coefficient * total / count).backward()
    found = gradients_of(model)
    model.zero_grad()
    objective.sampled.weights.clear()
    return found


class Probe:
    """A policy that is asked for nothing but its model."""

    device, passes = torch.device("cpu"), 0

    def __init__(self, model: PolicyModel) -> None:
        self.model = model

    @contextmanager
    def whole_weights(self) -> Iterator[PolicyModel]:
        yield self.model


FRESH: dict[str, Any] = {"steps": 3, "fresh_noise": 0.7}


def stepped_group(seed: int, rewards: Sequence[float | None]) -> ScoredGroup:
    return diffusion_group(seed, rewards, **FRESH)


def of_steps(**diffusion: Any) -> Case:
    common = {"micro_batch_clips": 100, **diffusion}
    return Case(
        "flow_grpo",
        diffusion_folder,
        stepped_group,
        step_regulariser,
        small={"diffusion": common | {"micro_batch_clips": 1}},
        settings={"diffusion": common},
    )


def follow(run: Run) -> None:
    """The old policy, which NFT's terms pull to, becomes the trained one."""
    for name, value in run.model.weights().items():
        run.objective.old.weights[name].copy_(value.detach())  # type: ignore[attr-defined]


def of_clips(name: str, **diffusion: Any) -> Case:
    common = {"regulariser": 0.1, "micro_batch_clips": 100, **diffusion}
    return Case(
        name,
        diffusion_folder,
        diffusion_group,
        clip_regulariser,
        small={"diffusion": common | {"micro_batch_clips": 1}},
        free={"diffusion": common | {"regulariser": 0.0}},
        settings={"diffusion": common},
        catch_up=follow,
    )


CASES = {
    "grpo": of_tokens(),
    "grpo decoupled": of_tokens(correction="decoupled"),
    "grpo truncated": of_tokens(correction="truncated"),
    "toy": Case("toy_objective:ToyObjective", toy_folder, toy_group, toy_gradient),
    "nft": of_clips("diffusion_nft", clips_per_rollout=1, lora={"rank": 0}),
    "nft lora": of_clips("diffusion_nft", times="uniform", times_per_clip=2, lora=LORA),
    "contrastive": of_clips("softmax_contrastive", lora=LORA),
    "flow": of_steps(clips_per_rollout=1, lora={"rank": 0}),
    "flow lora": of_steps(lora=LORA),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def folder(case: Case, tmp_path: Path) -> Path:
    return case.folder(tmp_path / "base")


def groups_of(case: Case, count: int = 4) -> list[ScoredGroup]:
    """Of which one has lost a sample."""
    rewards: list[tuple[float | None, ...]] = [REWARDS] * count
    rewards[0] = (0.3, None, 0.8)
    return [case.group(seed, rewards[seed]) for seed in range(count)]


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and numbers of nested mappings, by their paths."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{name}/{key}")
    else:
        yield name, tree


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Sums of float32 in another order."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    assert scale > 1e-6
    for name, value in other.items():
        torch.testing.assert_close(
            one[name], value, rtol=1e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_many_micro_batches_are_one(case: Case, folder: Path) -> None:
    whole, small = case.run(folder), case.run(folder, **case.small)
    results = []
    for run in (whole, small):
        run.perturb()
        run.moves = False
        results.append(run.update(groups_of(case)))
    assert small.backwards > 2 * whole.backwards
    assert results[0].steps == results[1].steps == 2
    for one, other in zip(small.gradients, whole.gradients, strict=True):
        assert_alike(one, other)
    assert results[0].metrics == pytest.approx(results[1].metrics, rel=1e-3, abs=1e-5)
    assert (results[0].size, results[0].counts) == (results[1].size, results[1].counts)


@pytest.mark.parametrize("ranks", [2, 7])
def test_ranks_add_up_to_one_and_pass_equally_often(case: Case, folder: Path, ranks: int) -> None:
    """With seven ranks some have no sample of their own."""
    runs = [case.run(folder, **case.small) for _ in range(ranks + 1)]
    results = []
    for number, run in enumerate(runs):
        run.perturb()
        run.moves = False
        rank = (0, 1) if number == ranks else (number, ranks)
        results.append(run.update(groups_of(case, 2), *rank))
    *shares, whole = runs
    assert len({(run.backwards, run.passes) for run in shares}) == 1
    for step, expected in enumerate(whole.gradients):
        total = {name: sum(run.gradients[step][name] for run in shares) for name in expected}
        assert_alike(total, expected)  # type: ignore[arg-type]
    merged = merge_metrics([result.metrics for result in results[:-1]])
    assert merged == pytest.approx(results[-1].metrics, rel=1e-3, abs=1e-5)
    assert len({(r.steps, r.size, r.unit, r.counts) for r in results}) == 1


def test_a_restored_run_goes_on_bit_for_bit(case: Case, folder: Path, tmp_path: Path) -> None:
    first, second = groups_of(case), [case.group(seed, REWARDS) for seed in range(10, 14)]
    run, again = case.run(folder), case.run(folder)
    run.update(first)
    run.save(tmp_path / "state")
    run.update(second)
    again.load(tmp_path / "state")
    again.update(second)
    ends = [dict(leaves(one.state() | {"out": one.objective.published(one.model)})) for one in (run, again)]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(torch.as_tensor(ends[1][name]), torch.as_tensor(value)), name


def test_what_is_saved_is_what_is_published(case: Case, folder: Path, tmp_path: Path) -> None:
    """Held-out curves are of published weights, and a replay takes saved ones."""
    run = case.run(folder)
    for _ in range(2):
        run.update(groups_of(case))
    run.objective.save(run.model, tmp_path / "saved")
    saved = run.objective.open_policy(tmp_path / "saved")
    whole = getattr(saved, "whole", dict)  # new adapters change nothing
    expected = getattr(run.model, "whole", dict)(run.objective.published(run.model))
    found = whole(saved.weights())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_equal_rewards_leave_the_regulariser_alone(case: Case, folder: Path) -> None:
    groups = [case.group(seed, [0.5] * 3) for seed in range(2)]
    run, free = case.run(folder), case.run(folder, **case.free)
    for one in (run, free):
        one.perturb()
        case.catch_up(one)
        one.moves = False
    expected = case.regulariser(run.model, run.objective, groups)
    result = run.update(groups)
    free.update(groups)
    assert result.counts.flat_groups == 2
    assert_alike(run.gradients[0], expected)
    assert not any(value.any() for value in free.gradients[0].values())


def test_a_step_without_a_valid_sample_is_left_out_on_every_rank(case: Case, folder: Path) -> None:
    nothing = [case.group(0, (None, None, None)), case.group(1, (0.5, None, None))]
    something = [case.group(seed, REWARDS) for seed in (2, 3)]
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        run = case.run(folder)
        result = run.update([*nothing, *something], rank, ranks)
        assert result.steps == len(run.gradients) == 1
        assert (result.counts.dropped_groups, result.counts.failed_samples) == (2, 6)
        still = case.run(folder)
        before = {name: value.clone() for name, value in still.model.state_dict().items()}
        result = still.update(nothing, rank, ranks)
        assert (result.steps, result.size, still.backwards) == (0, 0, 0)
        assert np.isnan(result.grad_norm)
        assert all(torch.equal(value, before[name]) for name, value in still.model.state_dict().items())


def test_the_toys_gradient_is_the_closed_form(tmp_path: Path) -> None:
    """Update loop and objective together, on a payload without tokens."""
    case = CASES["toy"]
    run = case.run(toy_folder(tmp_path / "base"))
    run.perturb()
    groups = groups_of(case, 2)
    expected = toy_gradient(run.model, run.objective, groups)
    run.update(groups)
    assert_alike(run.gradients[0], expected)


def test_objectives_are_found_by_name() -> None:
    assert isinstance(build_objective(AlignmentConfig(objective="toy_objective:ToyObjective")), ToyObjective)
    with pytest.raises(UserError, match=r"alignment.objective: unknown objective 'grop'.*grpo"):
        build_objective(AlignmentConfig(objective="grop"))
    with pytest.raises(UserError, match="is no objective"):
        build_objective(AlignmentConfig(objective="toy_objective:ToyModel"))


def test_grpo_refuses_a_job_whose_samples_cannot_be_trained_on() -> None:
    job = load_job("demo", ["rollout.sampling.temperature=0.5"])
    with pytest.raises(UserError, match=r"rollout.sampling"):
        build_objective(job.alignment).check(job)
