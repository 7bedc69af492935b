"""The action card: the meaning of an action vector. Stores and world models hold one.

A card holds, per dimension, a name, a unit, a kind, bounds and statistics, and for the vector the time that one action
covers and the robots that it controls. Unknown fields are marked as unknown: an empty unit, the kind "unknown", None
for bounds or a rate. `action_card_check` compares two cards; `action_card_of_store` makes the cards of stores.

    world_model/
      action_card.json    beside the weights that were trained on these actions
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from roboalign_ray.episodes.action_kinds import ActionKind, check_stride
from roboalign_ray.episodes.action_names import split_unit
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import read_object, validated

ACTION_CARD = "action_card.json"
FORMAT = 1  # of the file; a change of the hashed fields changes it too
WHAT = "action card"
_SUMMED = ("delta", "delta_angle")
_UNNAMED = re.compile(r"action\[\d+\]")
_HASH_DIGITS = 16
_SHOWN_DIMENSIONS = 8

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Unit = Annotated[str, Field(max_length=200)]
Values = tuple[FiniteFloat, ...]
Bounds = tuple[FiniteFloat, FiniteFloat]


class ActionStatistics(BaseModel):
    """Statistics of actions, one number per dimension in the dimension's unit.

    Attributes:
        frames: number of actions.
        p01, p99: 1st and 99th percentile.
        mean, std, min, max: over all actions; the population's standard deviation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: PositiveInt
    p01: Values
    p99: Values
    mean: Values
    std: Values
    min: Values
    max: Values

    @classmethod
    def of(cls, actions: np.ndarray) -> ActionStatistics:
        """Statistics of actions [N, A], N at least 1."""
        rows = np.asarray(actions, dtype=np.float64)
        low, high = np.percentile(rows, [1, 99], axis=0)
        return cls(
            frames=len(rows),
            p01=tuple(low.tolist()),
            p99=tuple(high.tolist()),
            mean=tuple(rows.mean(0).tolist()),
            std=tuple(rows.std(0).tolist()),
            min=tuple(rows.min(0).tolist()),
            max=tuple(rows.max(0).tolist()),
        )

    @model_validator(mode="after")
    def _check(self) -> ActionStatistics:
        for low, high in ((self.p01, self.p99), (self.min, self.max)):
            if len(low) == len(high) and any(a > b for a, b in zip(low, high, strict=True)):
                raise ValueError("a dimension's low figure lies above its high one")
        if any(value < 0 for value in self.std):
            raise ValueError("a standard deviation is negative")
        return self

    def sizes(self) -> set[int]:
        """Numbers of dimensions of the statistics; a single number if they agree."""
        return {len(part) for part in (self.p01, self.p99, self.mean, self.std, self.min, self.max)}


class ActionCard(BaseModel):
    """The meaning of an action vector of A dimensions.

    Attributes:
        names: A names without units; `action[2]` means that the name of dimension 2 is unknown.
        units: A units as in the source ("m", "rad", "-1 open, 1 closed"); "" if unknown.
        kinds: A kinds (see `action_kinds`); "unknown" if unknown.
        bounds: minimum and maximum of a command per dimension, as stated by the source; None if it states none. The
            observed range is in `statistics`.
        stride: number of recorded frames that one action covers; None if unknown, or if episodes differ.
        rate: actions per second; None if unknown, or if episodes differ.
        embodiments: names of the robots, sorted; () if unknown.
        statistics: statistics of the train split, at this stride; None if there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
    units: tuple[Unit, ...]
    kinds: tuple[ActionKind, ...]
    bounds: tuple[Bounds | None, ...]
    stride: Annotated[int, Field(gt=0, le=2**31)] | None = None
    rate: Annotated[FiniteFloat, Field(gt=0)] | None = None
    embodiments: tuple[Name, ...] = ()
    statistics: ActionStatistics | None = None

    @model_validator(mode="after")
    def _check(self) -> ActionCard:
        for what in ("units", "kinds", "bounds"):
            if (count := len(getattr(self, what))) != self.dims:
                raise ValueError(f"{count} {what} for {self.dims} names")
        if any(pair is not None and pair[0] > pair[1] for pair in self.bounds):
            raise ValueError("a lower bound lies above its upper bound")
        if self.statistics is not None and self.statistics.sizes() != {self.dims}:
            raise ValueError(f"statistics of another number of dimensions than {self.dims}")
        if list(self.embodiments) != sorted(set(self.embodiments)):
            raise ValueError("embodiments are not sorted, or one stands there twice")
        return self

    @classmethod
    def make(
        cls,
        labels: Sequence[str],
        kinds: Sequence[ActionKind],
        *,
        bounds: Sequence[Sequence[float] | None] = (),
        embodiments: Iterable[str] = (),
        where: str = WHAT,
        **fields: Any,
    ) -> ActionCard:
        """A card from an episode's names, with the unit in brackets ("delta_x [m]").

        Args:
            labels: A names.
            kinds: A kinds.
            bounds: A pairs or None; if omitted, they are unknown.
            embodiments: robots in any order; empty names are left out.
            where: for the error.
            fields: `stride`, `rate`, `statistics`.

        Raises:
            UserError: a field is invalid; the message names it.
        """
        pairs = [split_unit(label) for label in labels]
        values = {
            "names": tuple(name for name, _ in pairs),
            "units": tuple(unit for _, unit in pairs),
            "kinds": tuple(kinds),
            "bounds": tuple(None if pair is None else tuple(pair) for pair in bounds) or (None,) * len(pairs),
            "embodiments": tuple(sorted({name for name in embodiments if name})),
        }
        return validated({**values, **fields}, cls, WHAT, where=where)

    @property
    def dims(self) -> int:
        """Number of action dimensions A."""
        return len(self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names with their unit in brackets, as in episodes."""
        pairs = zip(self.names, self.units, strict=True)
        return tuple(f"{name} [{unit}]" if unit else name for name, unit in pairs)

    @property
    def source_rate(self) -> float | None:
        """Recorded frames per second; None if the rate or the stride is unknown."""
        return None if self.rate is None or self.stride is None else self.rate * self.stride

    def is_named(self, dim: int) -> bool:
        """Whether a dimension has a known name."""
        return not _UNNAMED.fullmatch(self.names[dim])

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Range per dimension, float64 [A] each: the bounds, or else the observed range, or else infinite."""
        low, high = np.full(self.dims, -np.inf), np.full(self.dims, np.inf)
        if self.statistics is not None:
            low, high = np.array(self.statistics.min), np.array(self.statistics.max)
        for dim, pair in enumerate(self.bounds):
            if pair is not None:
                low[dim], high[dim] = pair
        return low, high

    def strided(self, stride: int) -> ActionCard:
        """The card of actions from `accumulate_actions` with this stride.

        Bounds of increments are multiplied by the stride, others do not change. Statistics are left out: sums of
        increments depend on their order, so the statistics are computed from the accumulated actions
        (`fitted_action_card`).

        Raises:
            UserError: as `check_stride`, or a bound becomes infinite.
        """
        if stride == 1:
            return self
        check_stride(self.labels, self.kinds, stride, where=WHAT)
        bounds = tuple(
            pair if pair is None or kind not in _SUMMED else (pair[0] * stride, pair[1] * stride)
            for pair, kind in zip(self.bounds, self.kinds, strict=True)
        )
        changed = {
            "bounds": bounds,
            "stride": None if self.stride is None else self.stride * stride,
            "rate": None if self.rate is None else self.rate / stride,
            "statistics": None,
        }
        return validated({**self.model_dump(), **changed}, ActionCard, WHAT, where=f"stride {stride}")

    # --- identity and files --------------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over all fields except the statistics: with equal hashes, actions are interchangeable.

        With different hashes they may be interchangeable too, because one card may lack information that the other one
        has (`action_card_check`). Numbers are rounded to six digits.
        """
        identity = [
            FORMAT,
            self.names,
            self.units,
            self.kinds,
            [None if pair is None else [f"{value:.6g}" for value in pair] for pair in self.bounds],
            self.stride,
            None if self.rate is None else f"{self.rate:.6g}",
            self.embodiments,
        ]
        text = json.dumps(identity, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]

    def as_json(self) -> dict[str, Any]:
        """JSON types only: the fields, the format number and the hash."""
        return {"format": FORMAT, "hash": self.hash, **self.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> ActionCard:
        """Inverse of `as_json`; a card without hash, as after editing, is accepted too.

        Raises:
            UserError: the format is another one, a field is invalid (the message names it), or the hash does not match.
        """
        fields = dict(value)
        if (found := fields.pop("format", None)) != FORMAT or isinstance(found, bool):
            raise UserError(
                f"cannot be read as {WHAT} (format {found!r:.40}, this version reads {FORMAT})", where=where
            )
        said = fields.pop("hash", None)
        card = validated(fields, cls, WHAT, where=where)
        if said is not None and said != card.hash:
            raise UserError(
                f"cannot be read as {WHAT} (its hash is {said!r:.40}, that of its fields {card.hash})",
                where=where,
                remedy="copy it again, or take the hash out if it was edited on purpose",
            )
        return card

    def save(self, folder: Path) -> None:
        """Write `action_card.json` into a folder."""
        with whole_file(Path(folder) / ACTION_CARD) as draft:
            draft.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ActionCard | None:
        """The card in a folder; None if the folder has none, as those of earlier versions.

        Raises:
            UserError: the file is not an action card.
        """
        path = Path(folder) / ACTION_CARD
        if not path.exists():
            return None
        return cls.from_json(read_object(path, WHAT), str(path))

    # --- in words ------------------------------------------------------------------------------------------------

    def timing(self) -> str:
        """The time that one action covers, as text."""
        if self.rate is None:
            return "rate not known" + (f", every {_ordinal(self.stride)} frame" if self.stride else "")
        text = f"{self.rate:.4g} Hz"
        if self.stride is None or self.source_rate is None:
            return text
        if self.stride == 1:
            return f"{text}, every frame"
        return f"{text}, every {_ordinal(self.stride)} frame of {self.source_rate:.4g} Hz"

    def line(self) -> str:
        """The card in one line: dimensions with their kinds, timing, robots, hash."""
        pairs = list(zip(self.labels, self.kinds, strict=True))
        shown = ", ".join(f"{label} {kind}" for label, kind in pairs[:_SHOWN_DIMENSIONS])
        if len(pairs) > _SHOWN_DIMENSIONS:
            shown += f" and {len(pairs) - _SHOWN_DIMENSIONS} more"
        robots = ", ".join(self.embodiments) or "robot not known"
        return f"{shown}; {self.timing()}; {robots}; card {self.hash}"


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
