"""Fidelity to the real continuation: -w LPIPS + w SSIM + w PSNR, mean over frames and views, one score per sample.

The reward of the thin alignment loop (cf. RLVR-World, arXiv 2505.13934, whose verifiable video reward is pixel and
perceptual distance to the ground truth). A sample that cannot be compared is `Failed` with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from roboalign_ray.config import FidelityRewardConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.metrics.frame_metrics import LPIPS_CHUNK, psnr, ssim, to_images
from roboalign_ray.metrics.perceptual import SMALLEST_SIDE, PerceptualDistance, load_lpips
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Score, Scored


def fidelity(
    config: FidelityRewardConfig, lpips: np.ndarray, ssim: np.ndarray, psnr: np.ndarray
) -> np.ndarray:
    """The weighted sum of the three metrics, any shape alike; PSNR in dB."""
    return config.ssim_weight * ssim - config.lpips_weight * lpips + config.psnr_weight * psnr


class FidelityReward:
    """Implements `Reward`. Components: "lpips", "ssim" and "psnr" (dB).

    Args:
        config: weights and LPIPS network.
        lpips: the distance to use; None loads the configured one on `device`.

    Raises:
        UserError: on construction, if LPIPS has a weight and its backbone is missing.
    """

    def __init__(
        self,
        config: FidelityRewardConfig,
        lpips: PerceptualDistance | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.lpips = lpips or load_lpips(config.lpips_network, device, required=config.lpips_weight > 0)

    @classmethod
    def from_context(cls, config: FidelityRewardConfig, context: RewardContext) -> FidelityReward:
        """The reward on the scorer's device.

        Raises:
            UserError: as the constructor.
        """
        return cls(config, device=context.device)

    @torch.no_grad()
    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        if (fault := inputs.fault() or _fault(inputs)) is not None:
            return [fault] * len(inputs.generated)
        assert inputs.real is not None
        return self._compare(inputs.generated, inputs.real)

    def _compare(self, generated_GTVHWC: np.ndarray, real_TVHWC: np.ndarray) -> list[Score]:
        device = self.lpips.shift.device
        images_GTVCHW = to_images(generated_GTVHWC, device)
        real_TVCHW = to_images(real_TVHWC, device)
        flat = images_GTVCHW.flatten(0, 2)
        target = real_TVCHW.expand_as(images_GTVCHW).flatten(0, 2)
        pairs = list(zip(flat.split(LPIPS_CHUNK), target.split(LPIPS_CHUNK), strict=True))
        parts = {
            "lpips": torch.cat([self.lpips(a, b) for a, b in pairs]),
            "ssim": torch.cat([ssim(a, b) for a, b in pairs]),
            "psnr": torch.cat([psnr(a, b) for a, b in pairs]),
        }
        per_frame = {
            name: value.view(images_GTVCHW.shape[:3]).double().mean(dim=-1).cpu().numpy()
            for name, value in parts.items()
        }
        samples = range(len(generated_GTVHWC))
        return [self._total({name: v[sample] for name, v in per_frame.items()}) for sample in samples]

    def _total(self, parts: dict[str, np.ndarray]) -> Score:
        """One sample's score from its metrics per frame [T]."""
        rewards_T = fidelity(self.config, parts["lpips"], parts["ssim"], parts["psnr"])
        total = float(rewards_T.mean())
        if not np.isfinite(total):
            return Failed(f"reward came out as {total}", "nan")
        return Scored(total, {name: float(v.mean()) for name, v in parts.items()}, per_frame=rewards_T)


def _fault(inputs: RewardInput) -> Failed | None:
    """The reason why the group cannot be compared with the real continuation, or None."""
    if inputs.real is None:
        return Failed("no real continuation to compare with", "missing")
    height, width = inputs.real.shape[2:4]
    if min(height, width) < SMALLEST_SIDE:
        return Failed(f"frames of {height}x{width} are below LPIPS' {SMALLEST_SIDE} pixels", "shape")
    return None
