"""What a learner sends to rollout workers after an update: all weights, or adapters alone, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from align_kinds import KINDS, AlignKind
from tiny_denoiser import unit_card

from roboalign_ray.actors.learner import LearnerActor
from roboalign_ray.actors.rollout import RolloutActor
from roboalign_ray.actors.scorer import ScorerActor
from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.config import DenoiserConfig, NoiseConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.foundation.weight_sync.packing import pack, unpack
from roboalign_ray.pipelines.chaos.injector import _with_invalid_payload
from roboalign_ray.scheduling.prompt_schedule import schedule_from_store
from roboalign_ray.world_model.diffusion.files import save_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.registry import read_weights

FLOAT32, ALIGNMENT = 4, 64  # bytes


def adapters_of(weights: dict[str, torch.Tensor], rank: int, targets: tuple[str, ...]) -> list[int]:
    """Numbers of each tensor that a low-rank adapter adds: rank times inputs, and outputs times rank."""
    sizes = []
    for name, value in weights.items():
        if value.ndim > 1 and any(target in name for target in targets) and "embed.actions" not in name:
            sizes += [rank * value[0].numel(), len(value) * rank]
    return sizes + [value.numel() for name, value in weights.items() if "embed.actions" in name]


def padded(sizes: list[int]) -> int:
    """Bytes of tensors that begin at multiples of the alignment, one after the other."""
    *others, last = [size * FLOAT32 for size in sizes]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in others) + last


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_learner_publishes_what_it_trains_and_no_more(kind: AlignKind, tmp_path: Path) -> None:
    job = kind.make(tmp_path)
    folder = Path(job.world_model_weights)
    learner = LearnerActor(folder, job.alignment)
    learner.join(learner.address())
    version, manifest = learner.publish()
    *buckets, count = learner.take_buckets()
    learner.close()
    weights, lora = dict(read_weights(folder)), job.alignment.diffusion.lora
    alone = kind.world_model == "diffusion" and lora.rank > 0
    sizes = adapters_of(weights, lora.rank, lora.targets) if alone else [v.numel() for v in weights.values()]
    assert manifest is not None
    assert (version, count) == (0, len(manifest.buckets))
    assert sum(bucket.nbytes for bucket in buckets) == manifest.size
    assert sum(value.nbytes for value in unpack(manifest, buckets).values()) == FLOAT32 * sum(sizes)
    assert 0 <= manifest.size - FLOAT32 * sum(sizes) < ALIGNMENT * len(sizes)


def test_bytes_of_the_demos_denoiser(tmp_path: Path) -> None:
    """The figures of BENCHMARKS.md: float32, and bfloat16, which halves both."""
    job = load_job("demo_diffusion", ["alignment.objective=diffusion_nft"])
    network = Denoiser(DenoiserConfig(views=2))
    assert network.config == job.diffusion.denoiser
    save_denoiser(tmp_path, network, NoiseConfig(), unit_card(4))
    weights, lora = dict(network.named_parameters()), job.alignment.diffusion.lora
    policy = build_objective(job.alignment).open_policy(tmp_path)
    for precision, share in (("exact", 1.0), ("bfloat16", 0.5)):
        travel = WeightsConfig(precision=precision)  # type: ignore[arg-type]
        sent, whole = pack(policy.weights(), 1, travel)[0].size, pack(weights, 1, travel)[0].size
        assert sent == pytest.approx(share * padded(adapters_of(weights, lora.rank, lora.targets)), rel=1e-3)
        assert (round(sent / 1e6, 2), round(whole / 1e6, 2)) == (
            pytest.approx(1.49 * share, abs=0.01),
            pytest.approx(23.56 * share, abs=0.01),
        )


@pytest.mark.parametrize("name", ["grpo", "diffusion_nft"])
def test_a_corrupted_payload_fails_its_own_group_at_the_scorer(name: str, tmp_path: Path) -> None:
    """As the fault `tokens` of `roboalign chaos` corrupts it, whatever the payload is made of."""
    job = KINDS[name].make(tmp_path)
    folder = Path(job.world_model_weights)
    names = schedule_from_store(job.episodes, job.rollout, job.seed).train(0, 2)
    rollouts, _ = RolloutActor(folder, job.rollout, job.episodes).rollout(names, [(1, 2), (3, 4)])
    *_, (bad, good) = ScorerActor(folder, job.reward, job.episodes).score(_with_invalid_payload(rollouts))
    assert [hasattr(score, "reason") for score in (*bad.scores, *good.scores)] == [True, True, False, False]
