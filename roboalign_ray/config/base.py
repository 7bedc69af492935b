"""The base of every config model: frozen, typed, and helpful about unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.foundation.secrets import masked_tree
from roboalign_ray.plugins import installed, is_import_path

# Every generator that a seed reaches (NumPy, PyTorch, Ray, Arrow columns) takes these.
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# Layers and blocks of a network. A config from somebody else must not ask for a million.
Depth = Annotated[int, Field(ge=1, le=512)]


def check_warm_up(steps: int | None, total: int, where: str, *, unit: str = "steps") -> None:
    """Whether a learning rate reaches its peak.

    Raises:
        ConfigError: the warm-up is as long as the training, or longer.
    """
    if steps and steps >= total:
        raise ConfigError(
            f"a warm-up of {steps} {unit} does not end within {total} {unit}",
            where=where,
            remedy="set fewer, or null for the default",
        )


class ConfigError(UserError):
    """A config file or override that cannot be used."""


@dataclass(frozen=True)
class Extensions:
    """What a section whose keys also name extensions says of them.

    Attributes:
        kind: in `plugins.KINDS`.
        section: model of what stands below such a key.
    """

    kind: str
    section: type[FrozenConfig]


class FrozenConfig(BaseModel):
    """One immutable model per component. Unknown keys raise `ConfigError` and name the nearest known one.

    Attributes:
        extensions: of a section whose keys may also be names of extensions; it has `extra="allow"`.
        replaced: keys of earlier versions, and what to write instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    extensions: ClassVar[Extensions | None] = None
    replaced: ClassVar[Mapping[str, str]] = {}

    def public(self) -> dict[str, Any]:
        """The tree as JSON types, secrets inside URIs masked: what reports, manifests and trackers may show."""
        return masked_tree(self.model_dump(mode="json"))

    @classmethod
    def known_keys(cls) -> list[str]:
        """Fields, and names of installed extensions where those may stand here."""
        return [*cls.model_fields, *(installed(cls.extensions.kind) if cls.extensions else ())]

    @classmethod
    def knows(cls, key: str) -> bool:
        """Whether a key may stand here."""
        if cls.extensions is None:
            return key in cls.model_fields or cls.model_config.get("extra") == "allow"
        return key in cls.known_keys() or is_import_path(key)

    @classmethod
    def section(cls, key: str) -> type[FrozenConfig] | None:
        """The model that stands below a known key; None below a plain value."""
        if key not in cls.model_fields:
            return cls.extensions.section if cls.extensions else None
        annotation = cls.model_fields[key].annotation
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, FrozenConfig):
                return candidate
        return None

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if not cls.knows(str(key)):
                remedy = cls.replaced.get(key) or nearest_key(str(key), cls.known_keys())
                raise ConfigError(f"unknown key '{key}' in {cls.__name__}", remedy=remedy)
        return values
