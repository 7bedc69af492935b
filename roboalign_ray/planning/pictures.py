"""Pictures that a user gives, as start or as goal: files or arrays of exactly the world model's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import read_bytes
from roboalign_ray.world_model.protocol import ModelCard

_MOST_BYTES = 64 << 20

Picture = str | Path | np.ndarray


def read_picture(picture: Picture, card: ModelCard, where: str) -> np.ndarray:
    """Uint8 [V, H, W, 3].

    Args:
        picture: path of a PNG, JPEG, WebP or BMP, or uint8 [H, W, 3] or [V, H, W, 3].
        where: the option that it was given as.

    Raises:
        UserError: no picture, or not of the world model's size and views: nothing is resized unasked.
    """
    if isinstance(picture, str | Path):
        path = Path(picture)
        pixels = decode_picture(read_bytes(path, "picture", most_bytes=_MOST_BYTES), str(path))
    else:
        pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        raise UserError(f"is {pixels.dtype}, not uint8", where=where)
    views = pixels[None] if pixels.ndim == 3 else pixels
    wanted = (card.views, card.height, card.width, 3)
    if views.shape != wanted:
        raise UserError(
            f"is of shape {list(pixels.shape)}, the world model takes {list(wanted)}",
            where=where,
            remedy="resize it first" if views.ndim == 4 and len(views) == card.views else "",
        )
    return views
