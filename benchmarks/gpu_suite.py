"""Every figure of one GPU within four minutes: is it right, and how fast is it? One line of JSON for every section.

    python benchmarks/gpu_suite.py
    python benchmarks/gpu_suite.py --sections device first_kl
    python benchmarks/gpu_suite.py --device cpu --size tiny      (a rehearsal)

Sections of correctness have `right`, true or false:

    same_tokens          the token engine makes the tokens that a CPU makes, in float32
    same_frames          the diffusion engine makes the frames that a CPU makes, in float32
    first_kl             the first update's KL to the reference is 0, and its ratios are 1

and of speed, at the published size where there is one:

    device               measured copy bandwidth and bfloat16 matrix products: the ceilings of the others
    token_rollouts       tokens/s of 1 to 64 groups of 16, beside the time that reading the weights and keys takes
    kept                 tokens/s of Hugging Face's forward pass with a kept cache, and the engine's on the same prompt
    learner              tokens/s of GRPO updates
    diffusion_rollouts   frames/s by rows of a pass
    diffusion_training   windows/s by windows of a step
    student              videos/s of the 98M student
    scorer               frames/s of LPIPS and SSIM
    environment          steps/s of the Gymnasium environment over the shipped world model, by its size

Each section stops in time (`--cap`) and leaves out what is left. A section that fails says `error`. The exit code is 1
if one failed or is not right. Weights are random but in the last section: time does not depend on what is predicted.
Needs PyTorch and transformers; no Ray, DeepSpeed, vLLM or PyAV.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import copy
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import diffusion_rollout
import numpy as np
import rollout_engine
import torch

from roboalign_ray.config import (
    AlignmentConfig,
    DiffusionConfig,
    DiffusionSamplingConfig,
    RefreshConfig,
    RolloutConfig,
    SamplingConfig,
    StudentConfig,
    WorldModelConfig,
)
from roboalign_ray.world_model.diffusion.pretraining import DiffusionTrainer
from roboalign_ray.world_model.token.engine import RolloutEngine
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import build_model

SAMPLES = 16
TOKEN_SIZES = {
    **rollout_engine.SIZES,
    "tiny": (
        WorldModelConfig(hidden=32, layers=2, heads=2, kv_heads=2, ffn=48, action_dims=2),
        SequenceLayout(8, 4, 2, 12, 5),
    ),
}
STUDENTS = {"paper": StudentConfig(), "tiny": StudentConfig.small()}
# Frames that two float32 machines round differently stay within this mean distance, of 255.
SAME_FRAMES = 0.5
# A token is drawn by comparing a sum with a number: where rounding decides, sequences part.
SAME_TOKENS = 0.95
SAME_RATIO = 0.01  # float32, over 1,918 tokens a sample at the published size


@dataclass
class Run:
    """What a section may use.

    Attributes:
        device, size: of the command line.
        until: time at which the section should have ended, `time.monotonic`.
        ceilings: copy bandwidth in bytes/s, if measured.
    """

    device: torch.device
    size: str
    until: float
    ceilings: dict[str, float]

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal."""
        return self.size == "tiny"

    def left(self) -> bool:
        """Whether there is time for one more measurement."""
        return time.monotonic() < self.until

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """Median wall time of finished work, after one call to warm up."""
        times = []
        for _ in range(repeats + 1):
            self.finish()
            began = time.perf_counter()
            work()
            self.finish()
            times.append(time.perf_counter() - began)
            if not self.left():
                break
        return median(times[1:] or times)

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class PlainPolicy:
    """A token policy with AdamW, as the GRPO objective uses it, without DeepSpeed."""

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.module, self.layout, self.passes = module.to(dtype).to(device), module.layout, 0
        self.dtype, self.device = dtype, device
        self._optimizer = torch.optim.AdamW(module.parameters(), 1e-6)

    def predict(self, item: Any) -> Any:
        """Log-probabilities and entropies."""
        return self.module(*self.module.inputs(item, self.device))

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient."""
        loss.backward()

    def step(self) -> float:
        """One step; the gradient's norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)


def device(run: Run) -> dict[str, Any]:
    """Name, copy bandwidth, and rate of bfloat16 matrix products on random data."""
    side, numbers = (256, 2**20) if run.tiny else (8192, 2**30)
    source = torch.empty(numbers, dtype=torch.float32, device=run.device)
    target = torch.empty_like(source)
    run.ceilings["bandwidth"] = 2 * source.nbytes / run.seconds(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / run.seconds(lambda: a @ b)
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    return {
        "name": name,
        "torch": torch.__version__,
        "copy_gb_per_second": run.ceilings["bandwidth"] / 1e9,
        "bfloat16_tflops": rate / 1e12,
    }


def token_engine(
    run: Run, size: str, device: torch.device, precision: str, temperature: float = 1.0
) -> tuple[RolloutEngine, rollout_engine.Rollouts]:
    """An engine with random weights, the same for every device, and a prompt of two frames."""
    torch.manual_seed(0)
    config, layout = TOKEN_SIZES[size]
    model = build_model(config, layout).eval()
    ways = rollout_engine.Rollouts(model, layout, 2, SAMPLES, precision)
    settings = RolloutConfig(
        refresh=RefreshConfig(policy="none"),
        precision=precision,
        sampling=SamplingConfig(temperature=temperature),
    )
    codes, bins = rollout_engine.FixedCodes(layout), rollout_engine.unit_bins(layout)
    return RolloutEngine(model, codes, layout, bins, settings, device=device), ways


def same_tokens(run: Run) -> dict[str, Any]:
    """The demo's size, one group, two frames."""
    size = "tiny" if run.tiny else "demo"
    made = []
    for where in (torch.device("cpu"), run.device):
        engine, ways = token_engine(run, size, where, "float32")
        payload = engine.rollout([ways.prompt], [tuple(range(SAMPLES))])[0].payload
        made.append((payload.tokens, payload.segments[0].logprobs))
    (tokens, logprobs), (others, their) = made
    equal = tokens == others
    apart = np.abs(logprobs - their)[equal]
    return {
        "right": bool(equal.mean() >= SAME_TOKENS),
        "equal_share": float(equal.mean()),
        "largest_logprob_difference": float(apart.max()),
    }


def diffusion_engine(run: Run, device: torch.device, rows: int = SAMPLES):
    """An engine with random weights, and a prompt of four frames."""
    given = Namespace(steps=1, rows=rows, history=0, frames=4, candidates=SAMPLES, prompts=1)
    ways = diffusion_rollout.Ways(given)
    sampling = DiffusionSamplingConfig(rows_per_pass=rows)
    config = RolloutConfig(refresh=RefreshConfig(policy="none"), diffusion=sampling)
    from roboalign_ray.world_model.diffusion.engine import DiffusionEngine

    return DiffusionEngine(ways.network, ways.engine.folder, config, device=device), ways.prompt


def same_frames(run: Run) -> dict[str, Any]:
    """Four frames of two views."""
    frames = []
    for where in (torch.device("cpu"), run.device):
        engine, prompt = diffusion_engine(run, where)
        rollout = engine.rollout([prompt], [tuple(range(4))])[0]
        frames.append(engine.decode(rollout).astype(np.int16))
    apart = np.abs(frames[0] - frames[1])
    return {
        "right": bool(apart.mean() <= SAME_FRAMES),
        "mean_difference": float(apart.mean()),
        "largest_difference": int(apart.max()),
    }


def grpo(run: Run, precision: str) -> tuple[PlainPolicy, Callable[[], Any]]:
    """A policy and a function that makes one GRPO update of it on four groups of its own rollouts."""
    from roboalign_ray.alignment.objectives.grpo import GrpoObjective
    from roboalign_ray.alignment.objectives.token_policy import TokenPolicy
    from roboalign_ray.alignment.records.scored import ScoredGroup
    from roboalign_ray.alignment.update import policy_update
    from roboalign_ray.rewards.protocol import Scored
    from roboalign_ray.world_model.token.transformer import load_pretrained, save_pretrained

    engine, ways = token_engine(run, run.size, run.device, precision)
    rng = np.random.default_rng(0)
    groups = []
    for number in range(4):
        seeds = tuple(range(SAMPLES * number, SAMPLES * (number + 1)))
        rollout = engine.rollout([ways.prompt], [seeds])[0]
        groups.append(ScoredGroup(rollout, tuple(Scored(float(r)) for r in rng.normal(size=SAMPLES))))
    config = AlignmentConfig(minibatch_prompts=4, prompts_per_update=4, group_size=SAMPLES)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    objective = GrpoObjective(config)
    with TemporaryDirectory() as folder:
        save_pretrained(ways.model, ways.layout, Path(folder))
        rollout_engine.unit_bins(ways.layout).save(Path(folder))
        model, layout = load_pretrained(Path(folder))
        policy = PlainPolicy(TokenPolicy(copy.deepcopy(model), layout), dtype, run.device)
        objective.begin(policy, Path(folder))
    return policy, lambda: policy_update(policy, groups, config, objective, version=0)


def first_kl(run: Run) -> dict[str, Any]:
    """In both precisions; ratios compare the learner's log-probabilities with those that the engine recorded."""
    found: dict[str, Any] = {}
    for precision in ("float32", "bfloat16"):
        metrics = grpo(run, precision)[1]().metrics
        found[precision] = {name: value for name, value in metrics.items() if "kl" in name or "ratio" in name}
    first, exact = (found[precision]["reference_kl"] for precision in ("bfloat16", "float32"))
    found["right"] = first == exact == 0.0 and abs(found["float32"]["ratio_max"] - 1) <= SAME_RATIO
    return found


def token_rollouts(run: Run) -> dict[str, Any]:
    """Two frames each; the floor reads all weights once per decoded token."""
    engine, ways = token_engine(run, run.size, run.device, "bfloat16")
    config, _ = TOKEN_SIZES[run.size]
    weights = sum(p.numel() for p in ways.model.parameters()) * 2
    size, found = ways.layout.dynamics_tokens, {}
    for groups in (1, 4, 16, 64):
        if not run.left():
            break
        prompts = [ways.prompt] * groups
        seeds = [tuple(range(SAMPLES * n, SAMPLES * (n + 1))) for n in range(groups)]
        seconds = run.seconds(lambda prompts=prompts, seeds=seeds: engine.rollout(prompts, seeds), repeats=1)
        tokens = groups * SAMPLES * ways.frames * size
        sequence = ways.layout.context_tokens + (ways.frames + 1) * ways.layout.frame_tokens
        keys = 4 * config.layers * config.hidden * config.kv_heads // config.heads * sequence
        figures = {"tokens_per_second": tokens / seconds}
        if "bandwidth" in run.ceilings:
            # The context's keys are read once per group, a row's own ones once per row; this counts all per group.
            floor = ways.frames * size * (weights + groups * keys) / run.ceilings["bandwidth"]
            figures["times_the_floor"] = seconds / floor
        found[f"{groups} x {SAMPLES}"] = figures
    return found


def kept(run: Run) -> dict[str, Any]:
    """One group, bfloat16; Hugging Face's cache holds the prompt once per sample."""
    engine, ways = token_engine(run, run.size, run.device, "bfloat16")
    ways.model.to(run.device, torch.bfloat16)
    ways.ids, ways.actions = ways.ids.to(run.device), ways.actions.to(run.device)
    tokens = SAMPLES * ways.frames * ways.layout.dynamics_tokens
    own = run.seconds(lambda: engine.rollout([ways.prompt], [tuple(range(SAMPLES))]), repeats=1)
    other = run.seconds(lambda: ways.kept_tokens(), repeats=1)
    return {"engine": tokens / own, "kept": tokens / other, "engine_is_faster_by": other / own}


def learner(run: Run) -> dict[str, Any]:
    """Updates of four groups in bfloat16; tokens are generated ones."""
    _, update = grpo(run, "bfloat16")
    size = update().size
    return {"tokens_per_second": size / run.seconds(update, repeats=2), "tokens_per_update": size}


def diffusion_rollouts(run: Run) -> dict[str, Any]:
    """Four frames of two views of 64x64 each."""
    found = {}
    for rows in (4,) if run.tiny else (16, 64, 256, 1024):
        if not run.left():
            break
        engine, prompt = diffusion_engine(run, run.device, rows)
        seconds = run.seconds(
            lambda engine=engine, prompt=prompt, rows=rows: engine.rollout([prompt], [tuple(range(rows))])
        )
        found[str(rows)] = {"frames_per_second": rows * prompt.horizon / seconds}
    return found


def diffusion_training(run: Run) -> dict[str, Any]:
    """Steps of the profile demo_diffusion's shape, by windows and precision; without LPIPS."""
    from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
    from roboalign_ray.world_model.diffusion.network import Denoiser

    found: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for precision in ("float32", "bfloat16"):
        for windows in (1,) if run.tiny else (4, 16, 64):
            if not run.left():
                break
            config = DiffusionConfig.model_validate(
                {"denoiser": {"views": 2}, "training": {"perceptual_weight": 0.0, "precision": precision}}
            )
            sizes = config.denoiser
            network = Denoiser(sizes).to(run.device)
            scaling = ActionScaling((-1.0,) * sizes.action_dims, (1.0,) * sizes.action_dims)
            trainer = DiffusionTrainer(network, config, scaling, None, device=run.device)
            shape = (windows, config.window_frames, sizes.views, sizes.height, sizes.width, 3)
            frames = rng.integers(0, 256, shape, dtype=np.uint8)
            actions = rng.normal(size=(*shape[:2], sizes.action_dims)).astype(np.float32)
            seconds = run.seconds(
                lambda trainer=trainer, frames=frames, actions=actions: trainer.step(
                    frames[:, 0], frames, actions
                )
            )
            found[f"{precision}, {windows}"] = {"windows_per_second": windows / seconds}
    return found


def student(run: Run) -> dict[str, Any]:
    """Clips of 13 frames, prepared on the CPU as in a run."""
    from roboalign_ray.judge.student.model import Student, parameter_count

    judge = Student(STUDENTS[run.size]).to(run.device).eval()
    count = 2 if run.tiny else 256
    clips = np.random.default_rng(0).integers(0, 256, (count, 13, 64, 64, 3), dtype=np.uint8)
    seconds = run.seconds(lambda: judge.score(clips, ["open the drawer"] * count, batch=64))
    return {"videos_per_second": count / seconds, "parameters": parameter_count(judge)}


def scorer(run: Run) -> dict[str, Any]:
    """Frames of 64x64 through LPIPS (VGG's shape) and SSIM."""
    from roboalign_ray.metrics.frame_metrics import lpips_in_chunks, ssim
    from roboalign_ray.metrics.perceptual import load_lpips

    count = 2 if run.tiny else 1024
    lpips = load_lpips("random-vgg", run.device)
    a, b = (torch.rand(count, 3, 64, 64, device=run.device) for _ in range(2))
    region = torch.ones(64, 64, dtype=torch.bool, device=run.device)

    @torch.inference_mode()
    def score() -> None:
        lpips_in_chunks(lpips, a, b, region), ssim(a, b)

    return {"frames_per_second": count / run.seconds(score)}


def environment(run: Run) -> dict[str, Any]:
    """The shipped world model; every frame is shown."""
    import planning

    from roboalign_ray.world_model.registry import open_world_model

    model, found = open_world_model("shipped", device=str(run.device)), {}
    for count in (1,) if run.tiny else (1, 8, 64):
        if not run.left():
            break
        envs = planning.make_envs(model, count)
        action = envs.action_space.sample()
        found[str(count)] = {"steps_per_second": count / run.seconds(lambda e=envs, a=action: e.step(a))}
    return found


SECTIONS: dict[str, Callable[[Run], dict[str, Any]]] = {
    section.__name__: section
    for section in (
        device,
        same_tokens,
        same_frames,
        first_kl,
        token_rollouts,
        kept,
        learner,
        diffusion_rollouts,
        diffusion_training,
        student,
        scorer,
        environment,
    )
}


def main() -> int:
    """Run the sections; 1 if one failed or is not right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=["paper", "tiny"], default="paper")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--cap", type=float, default=20.0, help="seconds of a section")
    given = parser.parse_args()
    failed, ceilings = False, {}
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for name in given.sections:
        began = time.monotonic()
        run = Run(torch.device(given.device), given.size, began + given.cap, ceilings)
        try:
            found = SECTIONS[name](run)
        except Exception as error:  # one section's failure must not cost the figures of the others
            found = {"error": f"{type(error).__name__}: {error}"}
        failed = failed or "error" in found or found.get("right") is False
        print(
            json.dumps({"section": name, "seconds": round(time.monotonic() - began, 1), **found}), flush=True
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
