"""Checks whether actions of one card may be passed to a consumer with another card.

Names, kinds, units, bounds, rate and robot must agree if both cards have them. Fields that one card lacks, and
different statistics, are reported but not refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionKind, listed
from roboalign_ray.foundation.failures import UserError

_RATE_TOLERANCE = 0.01  # the same as between a wanted frame rate and the source's (`Shaping.of_rate`)
_BOUND_TOLERANCE = 1e-5  # relative: bounds are stored as float32
_OVERLAP = 0.5  # a smaller ratio of the ranges' intersection to their union is reported
_PLACED: tuple[set[ActionKind], ...] = (
    {"absolute", "angle"},
)  # an angle that never wraps is recognised as a position


@dataclass(frozen=True)
class Difference:
    """One field in which two cards differ.

    Attributes:
        field: "dimensions", "name", "kind", "unit", "bounds", "rate", "stride" or "robot".
        what: both values, in one clause.
        remedy: what to do.
    """

    field: str
    what: str
    remedy: str


@dataclass(frozen=True)
class CardCheck:
    """Result of comparing two cards.

    Attributes:
        differences: incompatible fields, the most severe first.
        notes: fields that could not be compared, and statistics that differ; one line each.
    """

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def require(self, where: str) -> None:
        """Raise if the cards are incompatible.

        Raises:
            UserError: the message names the first field, both values and the remedy.
        """
        if self.differences:
            first = self.differences[0]
            raise UserError(first.what, where=where, remedy=first.remedy)


def check_cards(
    ours: ActionCard,
    theirs: ActionCard,
    *,
    names: tuple[str, str] = ("the store", "the model"),
    frame_stride: int = 1,
) -> CardCheck:
    """Compare the card of the source of actions with that of their consumer.

    Args:
        ours: card of the source, at the stride that it is read with.
        theirs: card of the consumer.
        names: names of the two in messages.
        frame_stride: the stride of `ours`, for the remedy if the rates differ.
    """
    if ours.dims != theirs.dims:
        what = f"actions have {ours.dims} dimensions in {names[0]}, {theirs.dims} in {names[1]}"
        return CardCheck((Difference("dimensions", what, _other_store(names)),), ())
    found = [
        *_dimensions(ours, theirs, names),
        *_timing(ours, theirs, names, frame_stride),
        *_robots(ours, theirs, names),
    ]
    return CardCheck(tuple(found), (*_not_known(ours, theirs, names), *_other_ranges(ours, theirs, names)))


# --- what excludes each other ----------------------------------------------------------------------------------------


def _dimensions(ours: ActionCard, theirs: ActionCard, names: tuple[str, str]) -> Iterator[Difference]:
    """Names, kinds, units and bounds: the first dimension that differs in each of these fields."""
    pairs = {dim: _fields_that_differ(ours, theirs, dim) for dim in range(ours.dims)}
    for field in ("name", "kind", "unit", "bounds"):
        dims = [dim for dim, fields in pairs.items() if field in fields]
        if not dims:
            continue
        first, more = dims[0], len(dims) - 1
        shown = [_shown(card, first, field == "bounds") for card in (ours, theirs)]
        rest = f" ({more} more differ in {field})" if more else ""
        what = f"action {first} is {shown[0]} in {names[0]}, {shown[1]} in {names[1]}{rest}"
        yield Difference(field, what, _remedy(field, names))


def _fields_that_differ(ours: ActionCard, theirs: ActionCard, dim: int) -> set[str]:
    found = set()
    if ours.is_named(dim) and theirs.is_named(dim) and _plain(ours.names[dim]) != _plain(theirs.names[dim]):
        found.add("name")
    kinds = {ours.kinds[dim], theirs.kinds[dim]}
    if len(kinds) > 1 and UNKNOWN not in kinds and kinds not in _PLACED:
        found.add("kind")
    units = {_plain(ours.units[dim]), _plain(theirs.units[dim])}
    if len(units) > 1 and "" not in units:
        found.add("unit")
    bounds = ours.bounds[dim], theirs.bounds[dim]
    if bounds[0] is not None and bounds[1] is not None and not _near(bounds[0], bounds[1]):
        found.add("bounds")
    return found


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _near(first: Sequence[float], second: Sequence[float]) -> bool:
    width = max(abs(value) for value in (*first, *second))
    return all(abs(a - b) <= _BOUND_TOLERANCE * width for a, b in zip(first, second, strict=True))


def _shown(card: ActionCard, dim: int, bounds: bool) -> str:
    text = f"'{card.labels[dim]:.60}' ({card.kinds[dim]})"
    pair = card.bounds[dim]
    return text if not bounds or pair is None else f"{text} from {pair[0]:g} to {pair[1]:g}"


def _remedy(field: str, names: tuple[str, str]) -> str:
    if field == "kind":
        return f"{_other_store(names)}; a kind that is wrong is corrected with: roboalign episodes declare"
    return _other_store(names)


def _other_store(names: tuple[str, str]) -> str:
    return f"use {names[1]} with actions as in {names[0]}, or pre-train on {names[0]}"


def _timing(
    ours: ActionCard, theirs: ActionCard, names: tuple[str, str], frame_stride: int
) -> Iterator[Difference]:
    """The rates, if both are known; else the strides. Equal rates suffice, for any strides."""
    if ours.rate is not None and theirs.rate is not None:
        if abs(ours.rate - theirs.rate) > _RATE_TOLERANCE * theirs.rate:
            what = f"actions come at {ours.timing()} in {names[0]}, at {theirs.timing()} in {names[1]}"
            yield Difference("rate", what, _rate_remedy(ours.rate * frame_stride, theirs.rate, names))
    elif ours.stride is not None and theirs.stride is not None and ours.stride != theirs.stride:
        what = f"one action covers {ours.stride} frames in {names[0]}, {theirs.stride} in {names[1]}"
        yield Difference("stride", what, "set episodes.frame_stride to what the model was trained with")


def _rate_remedy(recorded: float, wanted: float, names: tuple[str, str]) -> str:
    stride = round(recorded / wanted)
    if stride >= 1 and abs(recorded / wanted - stride) <= _RATE_TOLERANCE * stride:
        return f"set episodes.frame_stride to {stride}"
    return f"no episodes.frame_stride gives that rate: {_other_store(names)}"


def _robots(ours: ActionCard, theirs: ActionCard, names: tuple[str, str]) -> Iterator[Difference]:
    known = {_plain(name) for name in theirs.embodiments}
    strangers = [name for name in ours.embodiments if _plain(name) not in known]
    if known and strangers:
        what = f"the robot is {listed(strangers):.200} in {names[0]}, {listed(theirs.embodiments):.200} in {names[1]}"
        yield Difference("robot", what, _other_store(names))


# --- notes ------------------------------------------------------------------------------------------------------------


def _not_known(ours: ActionCard, theirs: ActionCard, names: tuple[str, str]) -> Iterator[str]:
    """Fields that one side knows and the other does not, one line per side."""
    for card, other, name in ((ours, theirs, names[0]), (theirs, ours, names[1])):
        missing = {
            "name": [d for d in range(card.dims) if other.is_named(d) and not card.is_named(d)],
            "kind": [d for d in range(card.dims) if card.kinds[d] == UNKNOWN and other.kinds[d] != UNKNOWN],
            "unit": [d for d in range(card.dims) if other.units[d] and not card.units[d]],
            "bounds": [d for d in range(card.dims) if other.bounds[d] and not card.bounds[d]],
        }
        fields = [
            f"the {field} of {listed([other.names[dim][:60] for dim in dims])}"
            for field, dims in missing.items()
            if dims
        ]
        fields += ["the rate"] if card.rate is None and other.rate is not None else []
        fields += ["the robot"] if not card.embodiments and other.embodiments else []
        if fields:
            yield f"not known in {name}, so not compared: {'; '.join(fields)}"


def _other_ranges(ours: ActionCard, theirs: ActionCard, names: tuple[str, str]) -> Iterator[str]:
    """Dimensions whose ranges, between the 1st and 99th percentile, hardly overlap."""
    mine, yours = ours.statistics, theirs.statistics
    if mine is None or yours is None:
        return
    ranges = zip(mine.p01, mine.p99, yours.p01, yours.p99, strict=True)
    dims = [dim for dim, figures in enumerate(ranges) if _overlap(*figures) < _OVERLAP]
    if dims:
        first = dims[0]
        yield (
            f"values of {listed([ours.names[dim][:60] for dim in dims])} lie elsewhere: {ours.names[first]:.60} from "
            f"{mine.p01[first]:.3g} to {mine.p99[first]:.3g} in {names[0]}, from {yours.p01[first]:.3g} to "
            f"{yours.p99[first]:.3g} in {names[1]} (1st to 99th percentile)"
        )


def _overlap(low: float, high: float, other_low: float, other_high: float) -> float:
    """Ratio of two ranges' intersection to their union; 1 for two equal points."""
    whole = max(high, other_high) - min(low, other_low)
    shared = min(high, other_high) - max(low, other_low)
    return 1.0 if whole <= 0 else max(0.0, shared) / whole
