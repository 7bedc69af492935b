"""Parts that the reports of several jobs have in common: how they were made, learning curves, and titles of windows."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from roboalign_ray.evaluation.report.data import ReportData
from roboalign_ray.foundation.environment import hardware, versions
from roboalign_ray.foundation.secrets import masked
from roboalign_ray.pipelines.evaluate.job import Bench

_PACKAGES = ("roboalign-ray", "torch", "ray", "deepspeed", "transformers")
_LEARNING = (
    "held_out/reward_mean",
    "reward_mean",
    "reward_std",
    "reward_deviation",
    "equal_rewards",
    "reference_kl",
    "old_distance",
    "base_velocity_distance",
    "clip_fraction",
    "entropy",
    "ratio_max",
    "grad_norm",
    "seconds",
)


def origin_of(bench: Bench, command: Sequence[str], began: float) -> dict[str, Any]:
    """How a report was made, as `ReportData` has it.

    Args:
        command: the command line that repeats the run.
        began: `time.monotonic` at its beginning.
    """
    config = bench.config
    return {
        "lpips_label": bench.lpips.label,
        "lpips_real": bench.lpips.real,
        "settings": config.public(),
        "command": masked(shlex.join(command)),
        "seed": config.seed,
        "versions": versions(_PACKAGES),
        "hardware": hardware(),
        "seconds": time.monotonic() - began,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "fps": bench.decoder.card.fps or ReportData.fps,
    }


def learning_curves(curves: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Those of an alignment's curves that a report shows, in its order."""
    return {name: curves[name] for name in _LEARNING if name in curves}


def titles_of(bench: Bench) -> list[str]:
    """The windows' titles: instruction and id."""
    return [_title(window.prompt) for window in bench.windows]


def _title(prompt: Any) -> str:
    return f"“{prompt.instruction}” ({prompt.prompt_id})" if prompt.instruction else prompt.prompt_id
