"""One video per episode with synchronised panels side by side, such as context | real | before | after."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from roboalign_ray.episodes.video import encode_browser_video
from roboalign_ray.evaluation.report.data import EpisodeClip
from roboalign_ray.foundation.failures import UserError

GAP_GREY = 24
PANEL_PIXELS = 256  # views are enlarged by an integer factor to about this height


def tile(clip: EpisodeClip) -> np.ndarray:
    """The N panels side by side, their views one below the other, with dark lines between them.

    Returns:
        uint8 [T, V (H + 1) - 1, N (W + 1) - 1, 3].

    Raises:
        UserError: the panels differ in shape.
    """
    panels = list(clip.panels.values())
    shapes = {panel.shape for panel in panels}
    if len(shapes) != 1 or panels[0].dtype != np.uint8:
        raise UserError(f"panels have the shapes {sorted(shapes)}", where=clip.title)
    stacked = [_with_gaps([panel[:, view] for view in range(panel.shape[1])], axis=1) for panel in panels]
    return _with_gaps(stacked, axis=2)


def video_uri(clip: EpisodeClip, fps: float) -> str:
    """The tiled clip as a data URI that browsers can play (H.264, index at the front)."""
    height = next(iter(clip.panels.values())).shape[2]
    return frames_uri(tile(clip), fps, height=height)


def frames_uri(frames: np.ndarray, fps: float, *, height: int | None = None) -> str:
    """Frames uint8 [T, H, W, 3] as a data URI that browsers can play.

    Args:
        height: of one view, which is enlarged to about `PANEL_PIXELS`; None takes that of the frames.
    """
    scale = max(1, round(PANEL_PIXELS / (height or frames.shape[1])))
    data = encode_browser_video(frames, fps, scale=scale)
    return f"data:video/mp4;base64,{base64.b64encode(data).decode('ascii')}"


def _with_gaps(pictures: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Pictures [T, H, W, 3] in a row along `axis`, with a dark line between two."""
    shape = list(pictures[0].shape)
    shape[axis] = 1
    gap = np.full(shape, GAP_GREY, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=axis)
