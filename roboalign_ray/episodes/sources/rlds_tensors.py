"""Tensors of RLDS records as arrays, for all number types and encodings of TensorFlow Datasets.

Without an encoding, integers and booleans are a list of int64, all floats a list of float32. With encoding "bytes" or
"zlib", every step holds the raw little-endian bytes of its tensor. The size of a step is known from features.json, so a
compressed field is never unpacked beyond it.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.rlds_features import Feature
from roboalign_ray.episodes.sources.tfrecord import FeatureValue

_MOST_NUMBERS = 1 << 26  # limit on one feature in one episode: 256 MB as float32
_NUMBERS = {
    **{
        name: np.dtype(f"<{code}") for name, code in (("float16", "f2"), ("float32", "f4"), ("float64", "f8"))
    },
    **{
        f"{sign}int{bits}": np.dtype(f"<{sign or 'i'}{bits // 8}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "bool": np.dtype("u1"),
    "bfloat16": np.dtype("<u2"),
}


def tensor_rows(value: FeatureValue, feature: Feature, key: str) -> np.ndarray:
    """The numbers of a feature, step by step.

    Args:
        value: value in the record.
        feature: its description in features.json.
        key: its name, for errors.

    Returns:
        float32 [T, D]; booleans are 0 and 1.

    Raises:
        EpisodeError: the type or shape is not supported, or the record holds something else.
    """
    if feature.ragged or any(size < 0 for size in feature.shape):
        raise EpisodeError(f"'{key}' has no fixed shape, its steps cannot be put side by side")
    size = math.prod(feature.shape)
    if not 0 < size <= _MOST_NUMBERS:
        raise EpisodeError(f"'{key}' has {size} numbers a step, so many are not read")
    numbers = _from_bytes(value, feature, key, size) if isinstance(value, list) else value
    if not len(numbers) or len(numbers) % size:
        raise EpisodeError(f"'{key}' holds {len(numbers)} numbers, not a multiple of {size}")
    with np.errstate(over="ignore", invalid="ignore"):
        return numbers.reshape(-1, size).astype(np.float32)


def _from_bytes(chunks: list[bytes], feature: Feature, key: str, size: int) -> np.ndarray:
    """Numbers of steps that are stored as bytes."""
    if chunks and feature.encoding == "none":
        raise EpisodeError(f"'{key}' holds bytes, features.json says {feature.dtype}")
    if feature.encoding not in ("none", "bytes", "zlib"):
        raise EpisodeError(f"'{key}' has the encoding '{feature.encoding[:20]}', which is not read")
    kind = _NUMBERS.get(feature.dtype)
    if kind is None:
        raise EpisodeError(f"'{key}' holds {feature.dtype[:20]}, which is not read")
    if len(chunks) * size > _MOST_NUMBERS:
        raise EpisodeError(f"'{key}' holds {len(chunks) * size} numbers, at most {_MOST_NUMBERS} are read")
    expected = size * kind.itemsize
    raw = [_inflated(chunk, expected, key) if feature.encoding == "zlib" else chunk for chunk in chunks]
    for step, chunk in enumerate(raw):
        if len(chunk) != expected:
            raise EpisodeError(f"'{key}' holds {len(chunk)} bytes at step {step}, not {expected}")
    numbers = np.frombuffer(b"".join(raw), kind)
    if feature.dtype == "bfloat16":  # the upper half of a float32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return (numbers != 0).astype(np.float32) if feature.dtype == "bool" else numbers


def _inflated(chunk: bytes, expected: int, key: str) -> bytes:
    """Unpack a zlib stream of `expected` bytes; at most one byte more is unpacked."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(chunk, expected + 1)
    except zlib.error as error:
        raise EpisodeError(f"'{key}' is no zlib stream ({error})") from error
    if len(data) > expected:
        raise EpisodeError(f"'{key}' unpacks to more than the {expected} bytes that features.json tells")
    if not unpacker.eof:
        raise EpisodeError(f"'{key}' is a zlib stream that is cut short")
    return data
