"""Reads JSON metadata of datasets, with a check of every used field."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import raise_if_host
from roboalign_ray.foundation.storage.readers import first_fault

Model = TypeVar("Model", bound=BaseModel)
MOST_JSON_BYTES = 32 << 20


def read_metadata(path: Path, model: type[Model], what: str) -> Model:
    """Read a JSON file as `model`; keys that the model does not name are ignored.

    Args:
        path: the file.
        model: expected content.
        what: name of the expected content, for the error ("LeRobot info").

    Raises:
        EpisodeError: it cannot be read, is too large or not JSON, or a field is missing or invalid; the first one is
            named.
    """
    try:
        return model.model_validate_json(read_small(path))
    except ValidationError as error:
        reason = first_fault(error)
    except (OSError, ValueError) as error:
        raise_if_host(error, where=str(path))
        reason = getattr(error, "strerror", None) or str(error)
    raise EpisodeError(f"cannot be read as {what} ({reason})", where=str(path))


def read_small(path: Path, most: int = MOST_JSON_BYTES) -> bytes:
    """The bytes of a metadata file.

    Raises:
        ValueError: it is larger than `most` bytes.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most >> 20} MB")
    return data
