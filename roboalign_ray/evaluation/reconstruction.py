"""Reconstruction quality of the tokenizer: the upper bound for a token world model's frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from roboalign_ray.evaluation.bootstrap import Interval, bootstrap_mean
from roboalign_ray.evaluation.protocols import EvaluationWindow
from roboalign_ray.metrics.frame_metrics import psnr, ssim, to_images
from roboalign_ray.metrics.perceptual import PerceptualDistance
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.protocol import first_view

BRANCHES = ("context", "dynamics")


@dataclass(frozen=True)
class ReconstructionResult:
    """Reconstruction of held-out windows.

    Attributes:
        figures: branch -> metric ("psnr" dB, "ssim", "lpips") -> mean with its interval.
        codes_used: branch -> distinct codes over all windows.
        perplexity: branch -> exp of the entropy of the codes.
        codes: size of the codebook.
        frames: dynamics frames per window, after the context frame.
    """

    figures: dict[str, dict[str, Interval]]
    codes_used: dict[str, int]
    perplexity: dict[str, float]
    codes: int
    frames: int


@torch.inference_mode()
def reconstruct(
    tokenizer: DualBranchTokenizer,
    windows: Sequence[EvaluationWindow],
    lpips: PerceptualDistance,
    *,
    frames: int,
    resamples: int,
) -> ReconstructionResult:
    """Encode and decode the context frame and the `frames` frames after the start frame of every window.

    Args:
        windows: held-out windows.
        frames: number of frames after the start frame for the dynamics branch.
        resamples: bootstrap resamples.
    """
    device = next(tokenizer.parameters()).device
    values: dict[str, dict[str, list[float]]] = {
        b: {m: [] for m in ("psnr", "ssim", "lpips")} for b in BRANCHES
    }
    codes: dict[str, list[np.ndarray]] = {branch: [] for branch in BRANCHES}
    for window in windows:
        context = to_images(first_view(window.prompt.context), device)[None]
        video = to_images(first_view(window.real)[:frames], device)
        context_codes = tokenizer.encode_context(context)
        video_codes = tokenizer.encode_dynamics(video[None], context_codes)
        made = {
            "context": tokenizer.decode_context(context_codes),
            "dynamics": tokenizer.decode_dynamics(video_codes, context_codes)[0],
        }
        for branch, real in (("context", context), ("dynamics", video)):
            values[branch]["psnr"].append(float(psnr(made[branch], real).mean()))
            values[branch]["ssim"].append(float(ssim(made[branch], real).mean()))
            values[branch]["lpips"].append(float(lpips(made[branch], real).mean()))
        codes["context"].append(context_codes.cpu().numpy().ravel())
        codes["dynamics"].append(video_codes.cpu().numpy().ravel())
    counts = {b: np.bincount(np.concatenate(codes[b]), minlength=tokenizer.config.codes) for b in BRANCHES}
    episodes = [window.episode for window in windows]
    return ReconstructionResult(
        figures={
            branch: {
                metric: bootstrap_mean(np.array(v), resamples, episodes=episodes) for metric, v in per.items()
            }
            for branch, per in values.items()
        },
        codes_used={branch: int((count > 0).sum()) for branch, count in counts.items()},
        perplexity={branch: _perplexity(count) for branch, count in counts.items()},
        codes=tokenizer.config.codes,
        frames=min(frames, windows[0].prompt.horizon),
    )


def _perplexity(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
