"""Encoded pictures (JPEG, PNG) of datasets, decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from roboalign_ray.episodes.episode import EpisodeError


def decode_picture(raw: bytes, where: str) -> np.ndarray:
    """A JPEG or PNG as uint8 [H, W, 3] RGB.

    Args:
        raw: the file's bytes.
        where: which picture, for the error ("image_0[3]").

    Raises:
        EpisodeError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, TypeError) as error:
        raise EpisodeError(f"picture {where} cannot be decoded ({str(error)[:80]})") from error
