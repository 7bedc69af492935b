"""Objectives with world models of a few thousand numbers, scored groups, and the gradients of their regularisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy_objective
from diffusion_groups import diffusion_folder, diffusion_group
from toy_objective import toy_folder, toy_group

from roboalign_ray.alignment.advantages import group_advantages
from roboalign_ray.alignment.objectives.diffusion_batch import clip_batches
from roboalign_ray.alignment.objectives.protocol import Objective, PolicyModel, Share
from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import UpdateResult, policy_update
from roboalign_ray.config import AlignmentConfig, WorldModelConfig
from roboalign_ray.config.asynchrony import OffPolicyConfig
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.foundation.failures import Failed
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
