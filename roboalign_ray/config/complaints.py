"""Pydantic's errors in one line; and settings that a model outside this package checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from roboalign_ray.config.base import ConfigError
from roboalign_ray.foundation.failures import first_line, nearest_key


def first_complaint(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Place and description of the first error: expected and got, and the number of further errors."""
    first, *others = error.errors(include_url=False)
    message = first["msg"].replace("a valid tuple", "a list")
    if message.startswith("Input should be "):
        message = f"expected {message.removeprefix('Input should be ')}, got {first['input']!r}"
    elif first["type"] == "missing":
        message = "a value is missing"
    return first["loc"], f"{message} (and {len(others)} more)" if others else message


def dotted(place: tuple[int | str, ...]) -> str:
    """("tokenizer", "channels", 1) as "tokenizer.channels[1]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def settings_model(extension: Callable[..., Any], where: str = "") -> type[BaseModel] | None:
    """The model of an extension's settings: a class's `Config`, or the type of a function's second parameter.

    Raises:
        ConfigError: it is not a pydantic model.
    """
    if isinstance(extension, type):
        model = getattr(extension, "Config", None)
    else:
        second = list(inspect.signature(extension).parameters)[1:2]
        model = _types(extension, where).get(second[0]) if second else None
    if model is None or (isinstance(model, type) and issubclass(model, BaseModel)):
        return model
    raise ConfigError(f"the settings' type {model!r:.60} is no pydantic model", where=where)


def read_settings(
    extension: Callable[..., Any], values: Mapping[str, Any], where: str = ""
) -> BaseModel | None:
    """Check the settings below an extension's name with its model; None if it has none.

    Args:
        extension: class or function, from a registry.
        values: as loaded from YAML.
        where: dotted path of the name.

    Raises:
        ConfigError: a key is unknown (the nearest one is named), a type is wrong, or the extension has no settings.
    """
    model = settings_model(extension, where)
    if model is None:
        if values:
            raise ConfigError(f"unknown key '{next(iter(values))}'; there are no settings", where=where)
        return None
    known = [*model.model_fields, *(field.alias for field in model.model_fields.values() if field.alias)]
    for key in values:
        if key not in known and model.model_config.get("extra") != "allow":
            raise ConfigError(f"unknown key '{key}'", where=where, remedy=nearest_key(str(key), known))
    try:
        # Strict, like all settings; as JSON, so that a list can become a list, a tuple or a set, as the model requires.
        return model.model_validate_json(to_json(dict(values)), strict=True)
    except ValidationError as error:
        place, message = first_complaint(error)
        raise ConfigError(message, where=dotted((where, *place))) from None
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}: {error.where}", remedy=error.remedy) from None


def _types(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception as error:  # for example, a name that the module lacks
        raise ConfigError(f"its types cannot be read ({first_line(error)})", where=where) from None
