"""Figures as PNG files, for documents and for readers without a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roboalign_ray.evaluation.results import LongHorizonResult

_SHOWN = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}


def save_policy_curves(result: LongHorizonResult, path: Path, training_frames: int) -> None:
    """Plot per-frame curves of every refresh policy, one panel per metric and one for the time per frame.

    Args:
        result: result of `long_horizon`.
        path: PNG file.
        training_frames: frames of a training window; frames beyond it are shaded.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).ravel()
    frames = np.arange(1, result.horizon + 1)
    for panel, (metric, label) in zip(panels, _SHOWN.items(), strict=False):
        for policy in result.policies:
            panel.plot(frames, policy.metrics.curve(metric), label=policy.name)
        panel.plot(frames, result.copy_first.curve(metric), "k:", label="copy first frame")
        panel.set_ylabel(label if metric != "lpips" else result.lpips_label)
    for policy in result.policies:
        panels[3].plot(frames, 1e3 * policy.seconds_per_frame, label=policy.name)
    panels[3].set_ylabel("time per frame (ms)")
    for panel in panels:
        panel.axvspan(training_frames - 1, result.horizon, color="0.94", zorder=0)
        panel.set_xlabel("frame (shaded: beyond the training window)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{result.windows} held-out windows, {result.horizon} frames")
    figure.savefig(path, dpi=110)
