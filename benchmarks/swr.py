"""Sliding-window re-encoding against plain autoregression over a long horizon: time per frame, total, peak memory.

    python benchmarks/swr.py

Both roll out the same prompts with the same weights and seeds, taking turns; figures are medians over repeats. Time
includes encoding, decoding and re-encoding of frames by a tokenizer of the demo's size. Weights are random unless
folders are given: time does not depend on what is predicted.
"""

from __future__ import annotations

import roboalign_ray  # noqa: F401  (before torch: it says how torch's threads wait)

# isort: split
import argparse
import json
from pathlib import Path

import numpy as np
import torch

from roboalign_ray.config import RefreshConfig, RolloutConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.protocol import Prompt, Rollout
from roboalign_ray.world_model.token.engine import RolloutEngine
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.transformer import build_model, load_pretrained


def load(arguments: argparse.Namespace):
    """(model, layout, tokenizer), from folders or freshly initialised at the demo's size."""
    torch.manual_seed(0)
    demo = load_job("demo")
    if arguments.tokenizer:
        tokenizer = DualBranchTokenizer.load(arguments.tokenizer)
    else:
        tokenizer = DualBranchTokenizer(demo.tokenizer).eval()
    if arguments.world_model:
        return *load_pretrained(arguments.world_model), tokenizer
    layout = SequenceLayout.from_config(tokenizer.config, demo.world_model, demo.episodes.action_bins)
    return build_model(demo.world_model, layout), layout, tokenizer


def unit_bins(layout: SequenceLayout) -> ActionBinner:
    """Bins of width 1 from 0 on: an action is the number of its bin."""
    bins, dims = layout.action_bins, layout.action_tokens
    return ActionBinner((0.0,) * dims, (float(bins),) * dims, bins)


def make_prompts(
    count: int, frames: int, layout: SequenceLayout, tokenizer: DualBranchTokenizer
) -> list[Prompt]:
    """Prompts of noise frames and random actions."""
    generator = np.random.default_rng(0)
    size = (tokenizer.config.height, tokenizer.config.width, 3)
    return [
        Prompt(
            prompt_id=f"noise-{index}",
            context=generator.integers(0, 256, size, dtype=np.uint8),
            start=generator.integers(0, 256, size, dtype=np.uint8),
            actions=generator.integers(0, layout.action_bins, (frames, layout.action_tokens)),
        )
        for index in range(count)
    ]


def measure(arguments: argparse.Namespace) -> dict:
    """Figures by policy."""
    model, layout, tokenizer = load(arguments)
    prompts = make_prompts(arguments.prompts, arguments.frames, layout, tokenizer)
    seeds = [tuple(range(arguments.samples))] * len(prompts)
    refreshes = {
        "plain": RefreshConfig(policy="none"),
        "swr": RefreshConfig(policy="swr", window=arguments.window),
    }
    engines = {
        name: RolloutEngine(model, tokenizer, layout, unit_bins(layout), RolloutConfig(refresh=refresh))
        for name, refresh in refreshes.items()
    }
    runs: dict[str, list[Rollout]] = {name: [] for name in engines}
    for repeat in range(arguments.repeats + 1):
        for name, engine in engines.items():
            group = engine.rollout(prompts, seeds)[0]
            if repeat:  # the first one warms up
                runs[name].append(group)
    return {name: summary(groups, arguments.window) for name, groups in runs.items()}


def summary(groups: list[Rollout], window: int) -> dict:
    """Milliseconds over repeats; the first and the last window are compared as means per frame."""
    curve = 1000 * np.median([group.cost.seconds_per_frame for group in groups], axis=0)
    # Windows of SWR but the first begin with a refresh; comparing like with like leaves the first one out.
    windows = [curve[first : first + window].mean() for first in range(0, len(curve) - window + 1, window)]
    return {
        "total_ms": float(curve.sum()),
        "ms_per_frame_second_window": float(windows[min(1, len(windows) - 1)]),
        "ms_per_frame_last_window": float(windows[-1]),
        "peak_sequence": groups[0].cost.peak_sequence,
        "cache_bytes_per_group": groups[0].cost.cache_bytes,
        "ms_per_frame": [round(float(value), 2) for value in curve],
    }


def show(figures: dict, arguments: argparse.Namespace) -> None:
    """Tables of totals and of the curve."""
    from rich.console import Console
    from rich.table import Table

    title = f"T={arguments.frames}, W={arguments.window}, {arguments.prompts} prompts, G={arguments.samples}"
    table = Table(title=f"{title}, {torch.get_num_threads()} threads, median of {arguments.repeats}")
    for column in (
        "policy",
        "total ms",
        "ms/frame 2nd window",
        "ms/frame last window",
        "peak tokens",
        "cache MB",
    ):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['total_ms']:.0f}",
            f"{row['ms_per_frame_second_window']:.1f}",
            f"{row['ms_per_frame_last_window']:.1f}",
            str(row["peak_sequence"]),
            f"{row['cache_bytes_per_group'] / 1e6:.1f}",
        )
    console = Console()
    console.print(table)
    for name, row in figures.items():
        console.print(f"{name} ms per frame: {' '.join(f'{value:.0f}' for value in row['ms_per_frame'])}")
    saved = 1 - figures["swr"]["total_ms"] / figures["plain"]["total_ms"]
    console.print(f"SWR takes {100 * saved:.0f} % less time than plain autoregression")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--window", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--samples", type=int, default=8, help="G")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder")
    parser.add_argument("--world-model", type=Path, help="world model folder")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures, arguments)


if __name__ == "__main__":
    main()
