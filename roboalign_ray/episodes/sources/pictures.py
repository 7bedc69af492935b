"""Decodes single pictures of a dataset: PNG, JPEG, WebP and BMP, of limited size."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.shaping import MOST_FRAME_PIXELS
from roboalign_ray.foundation.failures import raise_if_host

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of grey pictures with 65,536 levels


def decode_picture(data: bytes, where: str, *, most_pixels: int = MOST_FRAME_PIXELS) -> np.ndarray:
    """Decode a picture. Levels of 16 bits are rounded to 8; transparency is dropped.

    Args:
        data: an encoded picture.
        where: name of the picture, for errors ("image_0[3]").
        most_pixels: a larger picture is refused by its header, before it is decoded.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        EpisodeError: there are no bytes, or the picture has another format, is too large or damaged.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise EpisodeError(f"picture {where} is {type(data).__name__}, not bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            return _decoded(data, where, most_pixels)
    except EpisodeError:
        raise
    except Image.UnidentifiedImageError as error:
        raise EpisodeError(
            f"picture {where} cannot be decoded: it is damaged, or none of {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead them to
        raise_if_host(error, where=where)
        said = str(error)[:80] or type(error).__name__
        raise EpisodeError(f"picture {where} cannot be decoded ({said})") from error


def _decoded(data: bytes, where: str, most_pixels: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > most_pixels:
            raise EpisodeError(f"picture {where} of {width}x{height} is larger than {most_pixels} pixels")
        if picture.mode in _SIXTEEN_BIT:
            levels = np.clip(np.asarray(picture, dtype=np.int64), 0, 65535)
            grey = ((levels + 128) // 257).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(picture.convert("RGB"))
