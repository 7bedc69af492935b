"""Embodiment profiles: what a robot can execute, as files. Each number names its source.

    roboalign_ray/inverse_dynamics/embodiments/NAME.yaml     shipped
    any other path                                           written by hand, or fitted to episodes (`profile_fit`)

Limits are of the action's own dimensions, in its units and per second: metres and radians of an end effector, or
radians of joints. An increment of the action is a change of position, so both kinds of action have the same limits.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from roboalign_ray.config.rewards import SHIPPED_EMBODIMENTS
from roboalign_ray.config.yaml_source import read_mapping
from roboalign_ray.episodes.action_card import ActionCard, Name, Unit
from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import validated

GRIPPER_WEIGHT = 0.2  # beside 1 of an arm's dimension, as in a public re-implementation of EVA
SUFFIX = ".yaml"
_WHAT = "embodiment profile"
_SOURCED = ("dt", "velocity", "acceleration", "jerk", "position", "weights")

Limit = Annotated[FiniteFloat, Field(gt=0)]
Weight = Annotated[FiniteFloat, Field(ge=0)]
Range = tuple[FiniteFloat, FiniteFloat]
Text = Annotated[str, Field(min_length=1, max_length=2000)]


class Embodiment(BaseModel):
    """Limits of one robot's action of A dimensions.

    Attributes:
        name: of the profile.
        robots: names that stores give this robot.
        dt: seconds that one action covers in the data that the limits are meant for; fixes where the jerk's Huber loss
            becomes linear.
        names: A names without units.
        units: A units; "" if unknown.
        velocity: A limits, unit per second.
        acceleration: A limits, unit per second².
        jerk: A limits, unit per second³; null takes acceleration / dt.
        position: A pairs (lowest, highest), or null where a dimension has no limit; null for none at all.
        gripper: positions of gripper and finger dimensions, which do not count as motion.
        weights: A weights; null takes 1, and 0.2 for grippers.
        sources: where each number comes from.
        fitted: whether the limits are percentiles of episodes, not of a data sheet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    robots: tuple[Name, ...] = ()
    dt: Limit
    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
    units: tuple[Unit, ...]
    velocity: tuple[Limit, ...]
    acceleration: tuple[Limit, ...]
    jerk: tuple[Limit, ...] | None = None
    position: tuple[Range | None, ...] | None = None
    gripper: tuple[NonNegativeInt, ...] = ()
    weights: tuple[Weight, ...] | None = None
    sources: dict[str, Text]
    fitted: bool = False

    @model_validator(mode="after")
    def _check(self) -> Embodiment:
        for what in ("units", "velocity", "acceleration", "jerk", "position", "weights"):
            values = getattr(self, what)
            if values is not None and len(values) != self.dims:
                raise ValueError(f"{len(values)} numbers of {what} for {self.dims} names")
        for place in self.gripper:
            if place >= self.dims:
                raise ValueError(f"gripper index {place} is out of range, there are {self.dims} dimensions")
        if any(pair is not None and pair[0] >= pair[1] for pair in self.position or ()):
            raise ValueError("position: a lowest value is not below its highest one")
        if not self.weight.any():
            raise ValueError("weights: no dimension has a weight above 0")
        given = [what for what in _SOURCED if getattr(self, what) is not None]
        if missing := [what for what in given if what not in self.sources]:
            raise ValueError(f"sources: none for {missing[0]}")
        if strangers := sorted(set(self.sources) - set(_SOURCED)):
            raise ValueError(f"sources: '{strangers[0]}' is no field with a source")
        return self

    @property
    def dims(self) -> int:
        """Action dimensions A."""
        return len(self.names)

    @property
    def weight(self) -> np.ndarray:
        """Float64 [A]: weight of each dimension."""
        if self.weights is not None:
            return np.asarray(self.weights, np.float64)
        found = np.ones(self.dims)
        found[list(self.gripper)] = GRIPPER_WEIGHT
        return found

    @property
    def moves(self) -> np.ndarray:
        """Bool [A]: dimensions whose motion counts: weighted ones that are no gripper."""
        found = self.weight > 0
        found[list(self.gripper)] = False
        return found

    @property
    def jerk_limit(self) -> np.ndarray:
        """Float64 [A]: limit of the jerk."""
        return np.asarray(self.jerk or [limit / self.dt for limit in self.acceleration], np.float64)

    @property
    def position_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest position, float64 [A] each; infinite without a limit."""
        pairs = [pair or (-math.inf, math.inf) for pair in self.position or (None,) * self.dims]
        low, high = np.asarray(pairs, np.float64).T
        return low, high

    def check_card(self, card: ActionCard, where: str) -> None:
        """Check that these limits are of the actions of a card.

        Raises:
            UserError: names, units, their number or the robot differ; the message names the first difference.
        """
        remedy = "choose another profile, or fit one with: roboalign executability fit"
        if card.dims != self.dims:
            raise UserError(
                f"actions have {card.dims} dimensions, the profile '{self.name}' has {self.dims}",
                where=where,
                remedy=remedy,
            )
        for dim in range(self.dims):
            ours, theirs = (self.names[dim], self.units[dim]), (card.names[dim], card.units[dim])
            named = card.is_named(dim) and _plain(ours[0]) != _plain(theirs[0])
            if named or (ours[1] and theirs[1] and _plain(ours[1]) != _plain(theirs[1])):
                raise UserError(
                    f"action {dim} is '{card.labels[dim]:.60}', in the profile '{self.name}' it is "
                    f"'{ours[0]:.60}{f' [{ours[1]:.40}]' if ours[1] else ''}'",
                    where=where,
                    remedy=remedy,
                )
        known = {_plain(robot) for robot in self.robots}
        if known and card.embodiments and not known & {_plain(robot) for robot in card.embodiments}:
            raise UserError(
                f"the robot is {', '.join(card.embodiments):.100}, the profile '{self.name}' is of "
                f"{', '.join(self.robots):.100}",
                where=where,
                remedy=remedy,
            )

    def save(self, path: Path, heading: str = "") -> None:
        """Write the profile as YAML; `heading` becomes a comment before it."""
        comment = "".join(f"# {line}\n" for line in heading.splitlines())
        fields = self.model_dump(mode="json", exclude_none=True)
        with whole_file(Path(path)) as draft:
            draft.write_text(comment + yaml.safe_dump(fields, sort_keys=False, width=110), encoding="utf-8")


def load_embodiment(name: str | Path) -> Embodiment:
    """A profile by its shipped name or the path of its file.

    Raises:
        UserError: there is none, or it is not valid; the message names the field.
    """
    shipped = str(name) in SHIPPED_EMBODIMENTS
    if not shipped and not str(name).endswith(SUFFIX):
        raise UserError(
            f"no embodiment profile '{name}'",
            where="embodiment",
            remedy=f"{nearest_key(str(name), list(SHIPPED_EMBODIMENTS))}, or give a {SUFFIX} file",
        )
    path = _folder() / f"{name}{SUFFIX}" if shipped else Path(name)
    return _parsed(read_mapping(path, str(path)).values, str(path))


def embodiment_of(card: ActionCard, where: str) -> Embodiment:
    """The shipped profile of the robot that an action card names.

    Raises:
        UserError: the card names no robot, or no profile is of this robot and these actions.
    """
    robots = {_plain(robot) for robot in card.embodiments}
    remedy = "name a profile, or fit one with: roboalign executability fit"
    if not robots:
        raise UserError("the robot of the actions is not known", where=where, remedy=remedy)
    found = [load_embodiment(name) for name in SHIPPED_EMBODIMENTS]
    same = [profile for profile in found if robots & {_plain(robot) for robot in profile.robots}]
    if not same:
        raise UserError(
            f"no embodiment profile is of the robot {', '.join(card.embodiments):.100}",
            where=where,
            remedy=remedy,
        )
    for profile in same[1:]:
        try:
            profile.check_card(card, where)
        except UserError:
            continue
        return profile
    same[0].check_card(card, where)
    return same[0]


def shipped_names() -> Collection[str]:
    """Names of the profile files in the package."""
    return sorted(
        path.name.removesuffix(SUFFIX) for path in _folder().iterdir() if path.name.endswith(SUFFIX)
    )


def _folder() -> Path:
    return Path(str(importlib.resources.files("roboalign_ray") / "inverse_dynamics" / "embodiments"))


def _parsed(values: dict[str, Any], where: str) -> Embodiment:
    return validated(values, Embodiment, _WHAT, where=where)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
