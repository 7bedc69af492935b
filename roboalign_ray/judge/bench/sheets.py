"""Contact sheets of degradations as PNG: time runs from left to right; the original clip is the first row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_COLUMNS, _GAP, _CAPTION = 10, 2, 12
_PICTURE_PIXELS = 96


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Write a sheet.

    Args:
        rows: (caption, frames uint8 [T, H, W, 3]); lengths may differ, short clips are padded with black.
        path: PNG file.
    """
    from PIL import Image, ImageDraw

    bands, captions, top = [], [], 0
    length = max(len(frames) for _, frames in rows)
    moments = np.unique(np.rint(np.linspace(0, length - 1, min(_COLUMNS, length))).astype(int))
    for caption, frames in rows:
        scale = max(1, round(_PICTURE_PIXELS / frames.shape[1]))
        large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
        blank = np.zeros_like(large[0])
        pictures = [large[moment] if moment < len(large) else blank for moment in moments]
        band = np.concatenate(
            [np.pad(picture, ((0, _GAP), (0, _GAP), (0, 0))) for picture in pictures], axis=1
        )
        captions.append((top, caption))
        bands.append(np.pad(band, ((_CAPTION, 0), (0, 0), (0, 0)), constant_values=40))
        top += len(bands[-1])
    image = Image.fromarray(np.concatenate(bands))
    draw = ImageDraw.Draw(image)
    for height, caption in captions:
        draw.text((3, height), caption, fill=(255, 255, 255))
    image.save(path)
