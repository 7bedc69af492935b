"""JSON metadata of datasets, checked field by field before anything relies on it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from roboalign_ray.episodes.episode import EpisodeError

Model = TypeVar("Model", bound=BaseModel)


def read_metadata(path: Path, model: type[Model], what: str) -> Model:
    """A JSON file as `model`; keys that the model does not name are ignored.

    Args:
        path: the file.
        model: what it must hold.
        what: what it should be, for the error ("LeRobot info").

    Raises:
        EpisodeError: unreadable, not JSON, or a field is missing or of a wrong type; the first one is named.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = first_fault(error)
    except OSError as error:
        reason = error.strerror or str(error)
    raise EpisodeError(f"cannot be read as {what} ({reason})", where=str(path))


def first_fault(error: ValidationError) -> str:
    """The first thing wrong, with the place of it."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
