"""A new version of the weights, from the learner's tensors to four workers that hold it, against a plain copy.

    python benchmarks/weight_sync.py
    python benchmarks/weight_sync.py --size 127m --repeats 3

Packed here, put into Ray's object store, unpacked by every worker: checksums, and the state as
arrays. The plain copy moves the same bytes once, within this process. Programs take turns in one run; figures are
medians over repeats. Between two versions the weights really are trained: every repeat is one AdamW step on random
gradients.

What share of a step that is, follows from the learner's time for one sequence, measured here on all cores (forward and
backward, and the reference's forward), times the sequences of the profile's update.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import ray
import torch

from roboalign_ray.config.loading import load_job
from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.foundation.weight_sync.manifest import Manifest
from roboalign_ray.foundation.weight_sync.packing import pack, unpack
from roboalign_ray.pipelines.capacity.sizes import layout_of
from roboalign_ray.world_model.token.transformer import build_model, token_logprobs

SIZES = {
    "smoke": ("demo", ["world_model.hidden=64", "world_model.ffn=176", "world_model.layers=2"]),
    "10m": ("demo", ["world_model.hidden=336", "world_model.ffn=928"]),
    "127m": ("paper_rt1", []),
}
WAYS = {
    "exact": WeightsConfig(),
    "bfloat16": WeightsConfig(precision="bfloat16"),
}
LEARNING_RATE = 5e-5  # the published one of GRPO on this model
DEADLINE_S = 300.0


class Holder:
    """A worker that holds weights, as rollout workers do."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.held: dict[str, dict[str, Any]] = {}

    def take(self, way: str, manifest: Manifest, references: list[Any]) -> int:
        """Fetch, check and hold a version; tensors held."""
        self.held[way] = unpack(manifest, ray.get(references, timeout=DEADLINE_S))
        return len(self.held[way])


def parameters_of(size: str) -> dict[str, torch.Tensor]:
    """Tensors of the named world model, random."""
    job = load_job(SIZES[size][0], SIZES[size][1])
    with torch.device("meta"):
        model = build_model(job.world_model, layout_of(job))
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator).mul_(0.02)
        for name, value in model.state_dict().items()
    }


def step_seconds(size: str, repeats: int) -> float:
    """Of an update of the named profile on this machine: one sequence, measured, times those of all its rollouts."""
    job = load_job(SIZES[size][0], SIZES[size][1])
    layout, window = layout_of(job), job.rollout.refresh.window
    model = build_model(job.world_model, layout)
    ids = torch.randint(layout.dynamics_range[0], layout.dynamics_range[1], (1, layout.length(window + 1)))

    def learn() -> None:
        with torch.no_grad():
            token_logprobs(model, ids, layout, window + 1)
        token_logprobs(model, ids, layout, window + 1).mean().backward()

    torch.set_num_threads(os.cpu_count() or 1)
    learn()  # what runs for the first time is slower
    seconds = median(timed(learn)[0] for _ in range(repeats))
    torch.set_num_threads(1)
    rollouts = job.alignment.prompts_per_update * job.alignment.group_size
    return seconds * rollouts * -(-job.rollout.horizon // window)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per way of packing."""
    state = parameters_of(arguments.size)
    optimizer = torch.optim.AdamW(state.values(), LEARNING_RATE, weight_decay=0.0)
    holders = [ray.remote(Holder).options(num_cpus=0).remote() for _ in range(arguments.workers)]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for version in range(1, arguments.repeats + 2):
        for value in state.values():
            value.grad = torch.randn_like(value)
        optimizer.step()
        for way in WAYS:
            figures = synchronise(state, version, way, holders)
            if version > 1:  # the first one warms up
                runs[way].append(figures)
    parameters = sum(value.numel() for value in state.values())
    return [
        {"way": way, "parameters": parameters, **{key: median(run[key] for run in rows) for key in rows[0]}}
        for way, rows in runs.items()
    ]


def synchronise(
    state: dict[str, torch.Tensor], version: int, way: str, holders: list[Any]
) -> dict[str, float]:
    """Seconds of each part of one synchronisation, and of a copy of the bytes that travelled."""
    pack_s, (manifest, buckets) = timed(lambda: pack(state, version, WAYS[way]))
    put_s, references = timed(lambda: [ray.put(bucket) for bucket in buckets])
    take_s, _ = timed(
        lambda: ray.get(
            [holder.take.remote(way, manifest, references) for holder in holders], timeout=DEADLINE_S
        )
    )
    copy_s, _ = timed(lambda: [bucket.copy() for bucket in buckets])
    full_copy_s, _ = timed(lambda: [value.numpy().copy() for value in state.values()])
    return {
        "bytes": manifest.size,
        "pack_s": pack_s,
        "put_s": put_s,
        "take_s": take_s,
        "total_s": pack_s + put_s + take_s,
        "copy_s": copy_s,
        "copy_of_float32_s": full_copy_s,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = ["way", "MB", "pack ms", "put ms", "workers ms", "total ms", "plain copy ms", "times a copy"]
    lines = [[*heads, "share of a step"], ["---"] * (len(heads) + 1)]
    for row in rows:
        times = [f"{1000 * row[key]:.0f}" for key in ("pack_s", "put_s", "take_s", "total_s", "copy_s")]
        ratios = [f"{row['total_s'] / row['copy_s']:.1f}", f"{row['total_s'] / row['step_s']:.3%}"]
        lines.append([row["way"], f"{row['bytes'] / 1e6:.1f}", *times, *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="10m", help="parameters of the world model")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = 200_000_000 + 4 * 4 * sum(value.numel() for value in parameters_of(arguments.size).values())
    ray.init(address="local", num_cpus=2, object_store_memory=store, include_dashboard=False)
    try:
        rows = measure(arguments)
    finally:
        ray.shutdown()
    step_s = step_seconds(arguments.size, arguments.repeats)
    rows = [{**row, "step_s": step_s} for row in rows]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{rows[0]['parameters'] / 1e6:.1f}M parameters, {arguments.workers} workers, ", end="")
        print(f"median of {arguments.repeats}; an update takes {step_s:.0f} s\n\n{table(rows)}")


if __name__ == "__main__":
    main()
