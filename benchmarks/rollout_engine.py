"""The rollout engine against Hugging Face, and its decode step against the bare matrix products.

    python benchmarks/rollout_engine.py --size demo
    python benchmarks/rollout_engine.py --size paper
    python benchmarks/rollout_engine.py --size demo --beside 1             (busy processes on the same cores)
    python benchmarks/rollout_engine.py --size demo --beside-engines 1     (other engines on the same cores)

One group of G samples is rolled out token by token by three programs with the same weights, interleaved in one run:

    engine     RolloutEngine, plain autoregression
    one thread the engine on a single thread, where something runs beside it
    kept       Hugging Face forward with one DynamicCache kept over the rollout, the prompt copied per sample
    generate   Hugging Face `generate` once per frame, the whole prompt prefilled again and copied per sample

Weights are random: time does not depend on what is predicted. Frames are not encoded or decoded by any of the three.
Figures are medians over repeats; progress goes to the error stream. At the paper's size one frame takes Hugging Face
tens of seconds on a CPU, so few frames are rolled out there, the same for all three. The decode step is one forward
pass of G rows with sampling, at the middle of the window; the bare products are `torch.mm` with matrices of the same
shapes, one after the other, on the same number of rows and nothing else.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from roboalign_ray.config import RefreshConfig, RolloutConfig, SamplingConfig, WorldModelConfig
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.token.engine import RolloutEngine
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.packed import PackedTransformer, Workspace
from roboalign_ray.world_model.token.sampling import Sampler, uniforms
from roboalign_ray.world_model.token.transformer import build_model

SIZES = {
    "demo": (WorldModelConfig(), SequenceLayout(64, 16, 4, 4375, 256)),
    "paper": (
        WorldModelConfig(hidden=768, layers=12, heads=12, kv_heads=12, ffn=3072, action_dims=13),
        SequenceLayout(1280, 80, 13, 4375, 256),
    ),
}
DEFAULTS = {
    "demo": {"frames": 30, "repeats": 5, "steps": 200},
    "paper": {"frames": 2, "repeats": 1, "steps": 25},
}


# Ends with the process that it was started by.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


def unit_bins(layout: SequenceLayout) -> ActionBinner:
    """Bins of width 1 from 0 on: an action is the number of its bin."""
    bins, dims = layout.action_bins, layout.action_tokens
    return ActionBinner((0.0,) * dims, (float(bins),) * dims, bins)


class FixedCodes:
    """Stands where the tokenizer would: constant codes at no cost, so that only the transformer is timed."""

    def __init__(self, layout: SequenceLayout) -> None:
        self._layout = layout

    frame_size = 8, 8

    def encode_context(self, frames):
        """Zeros [B, C]."""
        return torch.zeros((len(frames), self._layout.context_tokens), dtype=torch.int64)

    def context_features(self, codes):
        """The codes."""
        return codes

    def encode_dynamics(self, frames, context):
        """Zeros [B, T, D]."""
        return torch.zeros((*frames.shape[:2], self._layout.dynamics_tokens), dtype=torch.int64)

    def decode_dynamics(self, codes, context):
        """Black frames [B, T, 3, 8, 8]."""
        return torch.zeros((*codes.shape[:2], 3, 8, 8))


class Rollouts:
    """One prompt, G samples, three ways. Each way returns codes [G, frames, D]."""

    def __init__(self, model, layout: SequenceLayout, frames: int, samples: int, precision: str) -> None:
        self.model, self.layout, self.frames, self.samples = model, layout, frames, samples
        generator = np.random.default_rng(0)
        actions = generator.integers(0, layout.action_bins, (frames, layout.action_tokens))
        black = np.zeros((8, 8, 3), dtype=np.uint8)
        self.prompt = Prompt("benchmark", black, black, actions)
        context = np.zeros((1, layout.context_tokens), dtype=np.int64)
        given = np.zeros((1, 1, layout.dynamics_tokens), dtype=np.int64)
        ids = layout.assemble(context, given, actions[None, :1])
        self.ids = torch.from_numpy(np.repeat(ids, samples, axis=0))
        self.actions = torch.from_numpy(actions + layout.action_range[0])
        config = RolloutConfig(refresh=RefreshConfig(policy="none"), precision=precision)
        self._engine = RolloutEngine(model, FixedCodes(layout), layout, unit_bins(layout), config)

    @property
    def kernels(self) -> str:
        """What runs the engine's forward pass."""
        return "native" if self._engine.native else "PyTorch"

    def engine(self) -> np.ndarray:
        """Our engine."""
        return self._engine.rollout([self.prompt], [tuple(range(self.samples))])[0].payload.tokens

    def one_thread(self) -> np.ndarray:
        """Our engine on one thread, which nothing can hold up but its own core."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.engine()
        finally:
            torch.set_num_threads(before)

    def kept(self) -> np.ndarray:
        """`kept_tokens` on the CPU."""
        return self.kept_tokens().numpy()

    @torch.inference_mode()
    def kept_tokens(self) -> torch.Tensor:
        """Hugging Face forward with a kept cache; sampling restricted to the dynamics range, as the engine's."""
        from transformers import DynamicCache

        cache, chunk, tokens = DynamicCache(config=self.model.config), self.ids, []
        for frame in range(self.frames):
            for _ in range(self.layout.dynamics_tokens):
                logits = self.model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                chunk = torch.multinomial(logits[:, -1, : self.layout.codes].softmax(-1), 1)
                tokens.append(chunk)
            if frame + 1 < self.frames:
                chunk = torch.cat([chunk, self.actions[frame + 1].expand(self.samples, -1)], dim=1)
        return torch.cat(tokens, dim=1).reshape(self.samples, self.frames, -1)

    @torch.inference_mode()
    def generate(self) -> np.ndarray:
        """Hugging Face generate once per frame, nothing kept between frames."""
        ids, size, tokens = self.ids, self.layout.dynamics_tokens, []
        for frame in range(self.frames):
            ids = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=size,
                max_new_tokens=size,
                do_sample=True,
                top_k=0,
                pad_token_id=self.layout.eos,
            )
            tokens.append(ids[:, -size:])
            if frame + 1 < self.frames:
                ids = torch.cat([ids, self.actions[frame + 1].expand(self.samples, -1)], dim=1)
        return torch.stack(tokens, dim=1).numpy()


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    functions: dict[str, Callable[[], object]], repeats: int, progress: bool = False
) -> dict[str, float]:
    """Median seconds by name; the functions take turns, so that a disturbance meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        for name, function in functions.items():
            times[name].append(timed(function))
            if progress:
                print(f"{name} {turn + 1}/{repeats}: {times[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def measure_step(
    model, layout: SequenceLayout, frames: int, samples: int, repeats: int, precision: str
) -> dict[str, float]:
    """Milliseconds of the engine's decode step and of its bare matrix products."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    packed = PackedTransformer(model.state_dict(), model.config, layout, dtype=dtype)
    ids = torch.zeros((1, layout.peak_prompt(1)), dtype=torch.int64)
    prefix = packed.empty_cache(*ids.shape)
    packed.forward(ids, prefix, Workspace(packed, *ids.shape))
    cache = prefix.branch(samples, frames * layout.frame_tokens)
    cache.own.normal_()
    middle, w = frames * layout.frame_tokens // 2, Workspace(packed, samples, 1)
    sampler, uniform = Sampler(SamplingConfig()), torch.from_numpy(uniforms(list(range(samples)), 1))
    token = torch.zeros((samples, 1), dtype=torch.int64)

    def step() -> None:
        cache.length = middle
        sampler.draw(packed.forward(token, cache, w), uniform)

    matrices = [
        torch.randn(matrix.shape, dtype=dtype)
        for layer in packed.layers
        for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)
    ] + [torch.randn(packed.head.shape, dtype=dtype)]
    pairs = [
        (torch.randn(samples, m.shape[1], dtype=dtype), m.t(), torch.empty(samples, m.shape[0], dtype=dtype))
        for m in matrices
    ]

    def products() -> None:
        for rows, matrix, out in pairs:
            torch.mm(rows, matrix, out=out)

    for _ in range(3):
        step(), products()
    medians = interleaved({"step": step, "products": products}, repeats)
    return {name: 1000 * seconds for name, seconds in medians.items()}


@contextmanager
def company(size: str, busy: int, engines: int) -> Iterator[None]:
    """Other processes on the same cores for the length of the block: endless loops, and engines of that size."""
    commands = [[sys.executable, "-c", BUSY]] * busy
    commands += [[sys.executable, __file__, "--size", size, "--endless"]] * engines
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
    try:
        for process in processes[busy:]:
            assert process.stdout is not None
            process.stdout.readline()  # it is at work
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_endlessly(size: str, samples: int) -> None:
    """An engine for others to be measured beside; says when it begins."""
    config, layout = SIZES[size]
    model = build_model(config, layout).eval()
    rollouts = Rollouts(model, layout, DEFAULTS[size]["frames"], samples, "float32")
    print("running", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        rollouts.engine()


def run(size: str, arguments: argparse.Namespace) -> dict:
    """All figures of one size."""
    config, layout = SIZES[size]
    chosen = {key: getattr(arguments, key) or value for key, value in DEFAULTS[size].items()}
    torch.manual_seed(0)
    model = build_model(config, layout).eval()
    rollouts = Rollouts(model, layout, chosen["frames"], arguments.samples, arguments.precision)
    peers = {"engine": rollouts.engine, "kept": rollouts.kept}
    if arguments.beside or arguments.beside_engines:
        peers["one thread"] = rollouts.one_thread
    if not arguments.skip_generate:
        peers["generate"] = rollouts.generate
    warm = Rollouts(model, layout, 1, arguments.samples, arguments.precision)
    warm.engine()
    warm.kept()
    with company(size, arguments.beside, arguments.beside_engines):
        seconds = interleaved(peers, chosen["repeats"], progress=True)
        step = measure_step(
            model, layout, chosen["frames"], arguments.samples, chosen["steps"], arguments.precision
        )
    tokens = chosen["frames"] * layout.dynamics_tokens * arguments.samples
    return {
        "size": size,
        "samples": arguments.samples,
        "precision": arguments.precision,
        "threads": torch.get_num_threads(),
        "kernels": rollouts.kernels,
        "beside": arguments.beside,
        "beside_engines": arguments.beside_engines,
        "torch": torch.__version__,
        **chosen,
        "seconds": seconds,
        "tokens_per_second": {name: tokens / value for name, value in seconds.items()},
        "speedup": {name: value / seconds["engine"] for name, value in seconds.items() if name != "engine"},
        "step_ms": step["step"],
        "products_ms": step["products"],
        "step_over_products": step["step"] / step["products"],
    }


def show(result: dict) -> None:
    """One size as a table."""
    from rich.console import Console
    from rich.table import Table

    others = [f"{result['beside']} busy processes"] * bool(result["beside"])
    others += [f"{result['beside_engines']} engines"] * bool(result["beside_engines"])
    table = Table(
        title=f"{result['size']}: {result['frames']} frames, G={result['samples']}, {result['precision']}, "
        f"{result['kernels']} kernels, {result['threads']} threads, median of {result['repeats']}"
        + (f", beside {' and '.join(others)}" if others else "")
    )
    for column in ("program", "seconds", "tokens/s", "engine is faster by"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, value in result["seconds"].items():
        factor = f"{result['speedup'][name]:.1f}×" if name in result["speedup"] else ""
        table.add_row(name, f"{value:.3f}", f"{result['tokens_per_second'][name]:.0f}", factor)
    console = Console()
    console.print(table)
    console.print(
        f"decode step {result['step_ms']:.2f} ms, bare matrix products {result['products_ms']:.2f} ms: "
        f"{result['step_over_products']:.2f}×\n"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=[*SIZES, "both"], default="both")
    parser.add_argument("--frames", type=int, help="frames per rollout (demo 30, paper 2)")
    parser.add_argument("--repeats", type=int, help="rollouts of each program (demo 5, paper 1)")
    parser.add_argument("--steps", type=int, help="decode steps timed (demo 200, paper 25)")
    parser.add_argument("--samples", type=int, default=8, help="G")
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="the engine's"
    )
    parser.add_argument("--skip-generate", action="store_true", help="leave out the slowest peer")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="busy processes on the same cores")
    parser.add_argument(
        "--beside-engines", type=int, default=0, metavar="N", help="other engines on the same cores"
    )
    parser.add_argument("--endless", action="store_true", help="run the engine until the parent ends")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.endless:
        run_endlessly(arguments.size, arguments.samples)
        return
    results = [run(size, arguments) for size in (SIZES if arguments.size == "both" else [arguments.size])]
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            show(result)


if __name__ == "__main__":
    main()
