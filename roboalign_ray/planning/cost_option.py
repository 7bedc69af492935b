"""The cost of a search: a function, a name, or several names with settings and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from roboalign_ray.config.complaints import read_settings
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.costs import Term
from roboalign_ray.plugins import Registry
from roboalign_ray.world_model.protocol import ModelCard

_WHERE = "cost"

CostOption = Callable[[Any], Any] | str | Mapping[str, Mapping[str, Any]]


def _fault(found: Any) -> str | None:
    if isinstance(found, type):
        return None if callable(getattr(found, "open", None)) else "has no method open"
    return None if callable(found) else f"is of type {type(found).__name__}, not a function"


COSTS: Registry[Any] = Registry(
    "costs", "cost", {"progress": "roboalign_ray.planning.progress.term:ProgressTerm"}, _fault
)


def open_terms(option: CostOption, card: ModelCard) -> dict[str, tuple[Term, float]]:
    """Terms with their weights.

    Args:
        option: a function of predictions; a name: built-in, installed or "module:attribute"; or settings by name, among
            them `weight`, by default 1. A class is opened by its class method `open(config, card)`; a function with a
            second argument is given its settings there.
        card: of the world model.

    Raises:
        UserError: there is no such cost, its settings are wrong, or it does not fit the world model.
    """
    if isinstance(option, str):
        option = {option: {}}
    if not isinstance(option, Mapping):
        if not callable(option):
            raise UserError(f"is of type {type(option).__name__}, not a function", where=_WHERE)
        return {"cost": (option, 1.0)}
    return {name: _term(name, settings, card) for name, settings in option.items()}


def _term(name: str, settings: Any, card: ModelCard) -> tuple[Term, float]:
    where = f"cost {name}"
    if not isinstance(settings, Mapping):
        raise UserError(
            f"its settings are of type {type(settings).__name__}", where=where, remedy="give a table"
        )
    given = dict(settings)
    weight = given.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"its weight is {weight!r:.40}", where=where, remedy="give a number above 0")
    found = COSTS.load(name, _WHERE)
    config = read_settings(found, given, where)
    if isinstance(found, type):
        return cast(Any, found).open(config, card), float(weight)
    return (found if config is None else lambda predicted: found(predicted, config)), float(weight)
