"""One video per episode with four synchronised panels: context | real | before | after."""

from __future__ import annotations

import base64

import numpy as np

from roboalign_ray.episodes.video import encode_browser_video
from roboalign_ray.evaluation.report.data import EpisodeClip
from roboalign_ray.foundation.failures import UserError

PANELS = ("context", "real", "before", "after")
GAP_GREY = 24
PANEL_PIXELS = 256  # panels are enlarged by an integer factor to about this height


def tile(clip: EpisodeClip) -> np.ndarray:
    """The four panels side by side, uint8 [T, H, 4 W + 3, 3], with dark columns between them; the context is constant.

    Raises:
        UserError: the panels differ in shape.
    """
    shapes = {clip.real.shape, clip.before.shape, clip.after.shape, (len(clip.real), *clip.context.shape)}
    if len(shapes) != 1 or clip.real.dtype != np.uint8:
        raise UserError(f"panels have the shapes {sorted(shapes)}", where=clip.title)
    context = np.broadcast_to(clip.context, clip.real.shape)
    gap = np.full_like(clip.real[:, :, :1], GAP_GREY)
    return np.concatenate([context, gap, clip.real, gap, clip.before, gap, clip.after], axis=2)


def video_uri(clip: EpisodeClip, fps: float) -> str:
    """The tiled clip as a data URI that browsers can play (H.264, index at the front)."""
    return frames_uri(tile(clip), fps)


def frames_uri(frames: np.ndarray, fps: float) -> str:
    """Frames uint8 [T, H, W, 3] as a data URI that browsers can play."""
    scale = max(1, round(PANEL_PIXELS / frames.shape[1]))
    data = encode_browser_video(frames, fps, scale=scale)
    return f"data:video/mp4;base64,{base64.b64encode(data).decode('ascii')}"
