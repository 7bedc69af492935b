"""Fidelity to the real continuation: -w LPIPS + w SSIM, mean over frames, one score per sample.

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
from roboalign_ray.metrics.perceptual import PerceptualDistance, load_lpips
from roboalign_ray.rewards.protocol import RewardInput, Score, Scored


class FidelityReward:
    """Implements `Reward`. Components: "lpips", "ssim" and "psnr" (dB, for curves; it carries no weight).

    Args:
        config: weights and LPIPS network.
        lpips: the distance to use; None loads the configured one on `device`.

    Raises:
        UserError: on construction, where LPIPS carries weight and its backbone is missing.
    """

    def __init__(
        self,
        config: FidelityRewardConfig,
        lpips: PerceptualDistance | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.lpips = lpips or load_lpips(config.lpips_network, device, required=config.lpips_weight > 0)

    @torch.no_grad()
    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        generated = inputs.generated
        problem = _problem(inputs)
        if problem is not None:
            return [problem] * len(generated)
        finite = np.isfinite(generated).reshape(len(generated), -1).all(axis=1)
        usable = np.flatnonzero(finite)
        scores: list[Score] = [Failed("generated frames hold a value that is not finite", "nan")] * len(
            generated
        )
        if usable.size:
            for sample, score in zip(usable, self._compare(generated[usable], inputs.real), strict=True):
                scores[sample] = score
        return scores

    def _compare(self, generated_GTHWC: np.ndarray, real_THWC: np.ndarray | None) -> list[Score]:
        assert real_THWC is not None
        device = self.lpips.shift.device
        images_GTCHW = to_images(generated_GTHWC, device)
        real_TCHW = to_images(real_THWC, device)
        samples, frames = images_GTCHW.shape[:2]
        flat = images_GTCHW.flatten(0, 1)
        target = real_TCHW.expand_as(images_GTCHW).flatten(0, 1)
        pairs = list(zip(flat.split(LPIPS_CHUNK), target.split(LPIPS_CHUNK), strict=True))
        parts = {
            "lpips": torch.cat([self.lpips(a, b) for a, b in pairs]),
            "ssim": torch.cat([ssim(a, b) for a, b in pairs]),
            "psnr": torch.cat([psnr(a, b) for a, b in pairs]),
        }
        per_frame = {
            name: value.view(samples, frames).double().cpu().numpy() for name, value in parts.items()
        }
        return [self._total({name: v[sample] for name, v in per_frame.items()}) for sample in range(samples)]

    def _total(self, parts: dict[str, np.ndarray]) -> Score:
        """One sample's score from its metrics per frame [T]."""
        rewards_T = self.config.ssim_weight * parts["ssim"] - self.config.lpips_weight * parts["lpips"]
        total = float(rewards_T.mean())
        if not np.isfinite(total):
            return Failed(f"reward came out as {total}", "nan")
        return Scored(total, {name: float(v.mean()) for name, v in parts.items()}, per_frame=rewards_T)


def _problem(inputs: RewardInput) -> Failed | None:
    """Why the whole group cannot be compared, or None."""
    generated, real = inputs.generated, inputs.real
    if real is None:
        return Failed("no real continuation to compare with", "missing")
    if generated.ndim != 5 or generated.shape[-1] != 3:
        return Failed(f"generated frames are {generated.shape}, not [G, T, H, W, 3]", "shape")
    if generated.shape[1:] != real.shape:
        return Failed(f"generated frames are {generated.shape[1:]}, the real ones {real.shape}", "shape")
    if 0 in generated.shape:
        return Failed(f"generated frames are empty: {generated.shape}", "shape")
    for name, frames in (("generated", generated), ("real", real)):
        if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
            return Failed(f"{name} frames are {frames.dtype}, neither uint8 nor float", "shape")
    if not np.isfinite(real).all():
        return Failed("real frames hold a value that is not finite", "nan")
    if min(generated.shape[2:4]) < 32:
        return Failed(
            f"frames of {generated.shape[2]}x{generated.shape[3]} are below LPIPS' 32 pixels", "shape"
        )
    return None
