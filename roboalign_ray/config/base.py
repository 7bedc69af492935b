"""The base of every config model: frozen, typed, and helpful about unknown keys."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from roboalign_ray.foundation.failures import UserError


def nearest_key(key: str, known: list[str]) -> str:
    """A remedy that names the nearest known key, or lists them all when none is near."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"


class ConfigError(UserError):
    """A config file or override that cannot be used."""


class FrozenConfig(BaseModel):
    """One immutable model per component. Unknown keys raise `ConfigError` and name the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict):
            known = list(cls.model_fields)
            for key in values:
                if key not in known:
                    raise ConfigError(
                        f"unknown key '{key}' in {cls.__name__}", remedy=nearest_key(str(key), known)
                    )
        return values
