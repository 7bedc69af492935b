"""Instructions and success marks of RLDS records: texts, character codes, and numbers of a file of labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.episodes.sources.rlds_features import Feature
from roboalign_ray.episodes.sources.rlds_tensors import tensor_rows
from roboalign_ray.episodes.sources.tfrecord import FeatureValue

# language_instruction, natural_language_instruction, instruction; language_instruction_2 is a paraphrase.
_INSTRUCTION = re.compile(r"(?:.*_)?(?:language_instruction(?:_\d)?|instruction)")
_TRUE, _FALSE = ("true", "1", "yes", "success"), ("false", "0", "no", "failure")


@dataclass(frozen=True)
class Labels:
    """Sentences of a ClassLabel, by number."""

    names: tuple[str, ...]

    def sentence(self, value: FeatureValue, key: str) -> str:
        """The sentence of the first step.

        Raises:
            EpisodeError: a number without a sentence.
        """
        if isinstance(value, list) or not 0 <= int(value[0]) < len(self.names):
            raise EpisodeError(f"'{key}' holds no number of one of its {len(self.names)} labels")
        return self.names[int(value[0])]


def text_keys(features: Mapping[str, Feature]) -> tuple[str, ...]:
    """Features that may hold the instruction, in features.json's order."""
    return tuple(
        key
        for key, feature in features.items()
        if feature.kind in ("text", "tensor", "label")
        and _INSTRUCTION.fullmatch(key.rsplit("/", 1)[-1])
        and not _is_float(feature)
    )


def _is_float(feature: Feature) -> bool:
    return feature.kind == "tensor" and "int" not in feature.dtype


def is_number(feature: Feature) -> bool:
    """A single number, which stands for a sentence."""
    return feature.kind == "label" or (feature.kind == "tensor" and math.prod(feature.shape) < 2)


def read_labels(
    folder: DatasetFolder, features: Mapping[str, Feature], keys: Iterable[str]
) -> dict[str, Labels]:
    """Sentences of numbered instructions, from the `<feature>.labels.txt` files of TensorFlow Datasets."""
    found = {}
    for key in keys:
        name = f"{key.replace('/', '-')}.labels.txt"
        if is_number(features[key]) and (folder.root / name).is_file():
            lines = read_small(folder.file(name)).decode(errors="replace").splitlines()
            found[key] = Labels(tuple(line.strip() for line in lines))
    return found


def truth(value: Any) -> bool | None:
    """A success mark: a boolean, a number, or a word for one; None for anything else."""
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return bool(value) if isinstance(value, bool | int | float) else None


def text_of(value: FeatureValue, feature: Feature, key: str) -> str:
    """The text of a feature: the first string that is not empty, or the first step's characters as integers, ended by
    zeros.

    Raises:
        EpisodeError: the integers are not characters.
    """
    if isinstance(value, list):
        if feature.kind == "text":
            return next(filter(None, (text.decode(errors="replace").strip() for text in value)), "")
        value = tensor_rows(value, feature, key).ravel()
    codes = value[: math.prod(feature.shape)].astype(np.int64)
    codes = codes[: int(np.argmax(codes == 0))] if (codes == 0).any() else codes
    if ((codes < 1) | (codes > 0x10FFFF)).any():
        raise EpisodeError(f"'{key}' holds integers that are no characters")
    if (codes < 256).all():  # bytes of UTF-8, as Language-Table writes them
        return bytes(codes.tolist()).decode(errors="replace").strip()
    return "".join(map(chr, codes.tolist())).strip()
