"""The columns of a LeRobot data set that hold the action, and the names of its numbers.

Most data sets have one feature `action`; some split it: `action.delta_ee`, `action.gripper`. The parts are concatenated
in the order of info.json, and the names include the part of the key after the dot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from roboalign_ray.episodes.action_evidence import ActionSample
from roboalign_ray.episodes.action_kinds import ACTION_KINDS, KINDS_KEY, UNKNOWN, ActionFindings
from roboalign_ray.episodes.action_names import flat_names
from roboalign_ray.episodes.action_resolution import Decision, resolve_actions

_WHOLE = ("action", "actions")
_PART = "action."
_NOT_NUMBERS = ("video", "image", "string")


class NamedFeature(Protocol):
    """An entry of info.json's features."""

    dtype: str
    names: Any
    info: dict[str, Any] | None


def action_keys(features: Mapping[str, NamedFeature]) -> tuple[str, ...]:
    """The features of the action, in the order of their numbers; () if there is none."""
    for key in _WHOLE:
        if key in features:
            return (key,)
    return tuple(key for key, feature in features.items() if _is_action(key, feature))


def _is_action(key: str, feature: NamedFeature) -> bool:
    return (key in _WHOLE or key.startswith(_PART)) and feature.dtype not in _NOT_NUMBERS


def lerobot_findings(
    features: Mapping[str, NamedFeature],
    sizes: Mapping[str, int],
    samples: Iterable[ActionSample],
    state_key: str,
) -> ActionFindings:
    """Determine the kinds of a LeRobot data set's actions.

    Args:
        features: features of info.json.
        sizes: number of dimensions of each feature of `action_keys`, from the tables.
        samples: a few episodes.
        state_key: name of the state's feature.
    """
    names: list[str] = []
    notes: list[str] = []
    declared: dict[int, Decision] = {}
    for key, size in sizes.items():
        declared |= _declared_kinds(key, features[key], size, len(names), notes)
        given = features[key].names
        own = flat_names(given, size)
        if given is not None and not own:
            notes.append(f"the names of '{key}' are not those of its {size} numbers, so they are not used")
        names += _prefixed(key, own, size, alone=len(sizes) == 1)
    beside = [key for key in features if _is_action(key, features[key]) and key not in sizes]
    if beside and sizes:
        notes.append(f"{', '.join(beside)}: beside '{', '.join(sizes)}', left out")
    samples = list(samples)
    state_names: Sequence[str] = ()
    if state_key in features and samples and samples[0].state is not None:
        state_names = flat_names(features[state_key].names, samples[0].state.shape[1])
    return resolve_actions(names, samples, published=declared, state_names=state_names, notes=notes)


def _declared_kinds(
    key: str, feature: NamedFeature, size: int, first: int, notes: list[str]
) -> dict[int, Decision]:
    """Kinds that info.json declares for a feature's numbers, by dimension from `first` on; adds a note if unusable."""
    kinds = (feature.info or {}).get(KINDS_KEY)
    if kinds is None:
        return {}
    if not isinstance(kinds, list) or len(kinds) != size or any(kind not in ACTION_KINDS for kind in kinds):
        notes.append(f"the {KINDS_KEY} of '{key}' are not kinds of its {size} numbers, so they are not used")
        return {}
    return {first + dim: (kind, "info.json says so") for dim, kind in enumerate(kinds) if kind != UNKNOWN}


def _prefixed(key: str, names: Sequence[str], size: int, *, alone: bool) -> Sequence[str]:
    if alone and key in _WHOLE:
        return names or [f"action[{d}]" for d in range(size)]
    part = key.removeprefix(_PART)
    if names:
        return [f"{part}.{name}" for name in names]
    return [part] if size == 1 else [f"{part}[{d}]" for d in range(size)]
