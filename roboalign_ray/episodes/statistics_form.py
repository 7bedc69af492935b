"""Checks the content of an episode store's statistics.json."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt

from roboalign_ray.episodes.action_card import Bounds
from roboalign_ray.episodes.action_kinds import ActionKind


class ActionsForm(BaseModel):
    """Statistics of the actions with one number of dimensions, over the train split.

    Attributes:
        names, kinds: one per dimension; stores of earlier versions have no kinds.
        declared: whether a user declared the kinds, for every episode.
        bounds, rate, stride, embodiments: as in an action card; missing in stores of earlier versions.
        frames: number of actions; if it is 0, there are no figures.
        p01, p99, mean, std, min, max: one per dimension, in the units of the actions.
    """

    model_config = ConfigDict(extra="allow")

    names: list[str]
    kinds: list[ActionKind] | None = None
    declared: bool = False
    bounds: list[Bounds | None] | None = None
    rate: Annotated[FiniteFloat, Field(gt=0)] | None = None
    stride: PositiveInt | None = None
    embodiments: list[str] | None = None
    frames: NonNegativeInt
    p01: list[FiniteFloat] | None = None
    p99: list[FiniteFloat] | None = None
    mean: list[FiniteFloat] | None = None
    std: list[FiniteFloat] | None = None
    min: list[FiniteFloat] | None = None
    max: list[FiniteFloat] | None = None


class StatisticsForm(BaseModel):
    """The file's keys that other code reads. `actions` maps the number of action dimensions to statistics."""

    model_config = ConfigDict(extra="allow")

    schema_version: int
    episodes: NonNegativeInt
    frames: NonNegativeInt
    held_out_fraction: Annotated[float, Field(ge=0, le=1)]
    length: dict[str, FiniteFloat]
    splits: dict[str, NonNegativeInt]
    sources: dict[str, NonNegativeInt]
    views: dict[str, NonNegativeInt]
    success: dict[str, NonNegativeInt]
    instructions: NonNegativeInt
    actions: dict[str, ActionsForm]
