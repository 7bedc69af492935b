"""The base of every config model: frozen, typed, and helpful about unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.foundation.secrets import masked_tree

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


class FrozenConfig(BaseModel):
    """One immutable model per component. Unknown keys raise `ConfigError` and name the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def public(self) -> dict[str, Any]:
        """The tree as JSON types, secrets inside URIs masked: what reports, manifests and trackers may show."""
        return masked_tree(self.model_dump(mode="json"))

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
