"""Videos moved a little and lit otherwise, as a whole: what they show is worth as much as before.

Some hundred scenes from one camera are soon known by heart. Random shifts are those that reinforcement learning from
pixels lives on (DrQ, arXiv 2004.13649); light, contrast and saturation are torchvision's. How much is [ours].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.judge.data.pairs import JudgedPair

_DRAWS = 1  # not those of fresh examples: how a video is moved must not tell whether it was spoiled


class Augmentation:
    """Moves and lights videos at random.

    Args:
        shift: largest move, a share of the picture's height and width; what comes in repeats the edge.
        light: brightness, contrast and saturation each change by a factor within 1 - light to 1 + light. Contrast is
            about every frame's own mean, so that still pixels may come to differ by a level or two.
        seed: of all draws.
    """

    def __init__(self, shift: float, light: float, seed: int) -> None:
        self._shift, self._light, self._seed = shift, light, seed

    def batch(self, pairs: Sequence[JudgedPair], step: int) -> list[JudgedPair]:
        """The pairs of a training step with other frames [T, H, W, 3]. The draws follow from seed, step and place."""
        if not self._shift and not self._light:
            return list(pairs)
        return [
            replace(
                pair,
                frames=self._changed(pair.frames, np.random.default_rng((self._seed, step, place, _DRAWS))),
            )
            for place, pair in enumerate(pairs)
        ]

    def _changed(self, frames_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        video_TCHW = torch.from_numpy(frames_THWC.transpose(0, 3, 1, 2).copy())
        video_TCHW = self._lit(self._moved(video_TCHW, rng), rng)
        return np.ascontiguousarray(video_TCHW.numpy().transpose(0, 2, 3, 1))

    def _moved(self, video_TCHW: Tensor, rng: np.random.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        height, width = video_TCHW.shape[-2:]
        rows, columns = round(self._shift * height), round(self._shift * width)
        wider_TCHW = functional.pad(video_TCHW, [columns, rows], padding_mode="edge")
        top, left = rng.integers(2 * rows + 1), rng.integers(2 * columns + 1)
        return functional.crop(wider_TCHW, int(top), int(left), height, width)

    def _lit(self, video_TCHW: Tensor, rng: np.random.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
        for change, factor in zip(changes, rng.uniform(1 - self._light, 1 + self._light, 3), strict=True):
            video_TCHW = change(video_TCHW, float(factor))
        return video_TCHW
