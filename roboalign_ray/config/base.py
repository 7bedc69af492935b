"""The base of every config model: frozen, typed, and helpful about unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.foundation.secrets import masked_tree
from roboalign_ray.plugins import installed, is_import_path

# Seeds are passed to several generators (NumPy, PyTorch, Ray, Arrow columns); all of them accept this range.
Seed = Annotated[int, Field(ge=0, lt=2**63)]

# Limit on layers and blocks of a network, because a config may come from an untrusted source.
Depth = Annotated[int, Field(ge=1, le=512)]


def check_warm_up(steps: int | None, total: int, where: str, *, unit: str = "steps") -> None:
    """Check that a learning rate reaches its peak.

    Raises:
        ConfigError: the warm-up is at least as long as the training.
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
    """Extension keys of a section.

    Attributes:
        kind: kind of the extensions, in `plugins.KINDS`.
        section: model of the settings below such a key.
    """

    kind: str
    section: type[FrozenConfig]


class FrozenConfig(BaseModel):
    """One immutable model per component. Unknown keys raise `ConfigError` and name the nearest known one.

    Attributes:
        extensions: for a section whose keys may also be names of extensions; it has `extra="allow"`.
        replaced: keys of earlier versions, and their replacements.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    extensions: ClassVar[Extensions | None] = None
    replaced: ClassVar[Mapping[str, str]] = {}

    def public(self) -> dict[str, Any]:
        """The tree as JSON types, with secrets inside URIs masked: for reports, manifests and trackers."""
        return masked_tree(self.model_dump(mode="json"))

    @classmethod
    def known_keys(cls) -> list[str]:
        """Field names, and names of installed extensions if the section allows them."""
        return [*cls.model_fields, *(installed(cls.extensions.kind) if cls.extensions else ())]

    @classmethod
    def knows(cls, key: str) -> bool:
        """Whether the section allows a key."""
        if cls.extensions is None:
            return key in cls.model_fields or cls.model_config.get("extra") == "allow"
        return key in cls.known_keys() or is_import_path(key)

    @classmethod
    def section(cls, key: str) -> type[FrozenConfig] | None:
        """The model below a known key; None for a plain value."""
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
