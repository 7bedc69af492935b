"""Published action layouts of RLDS data sets. Each is checked against the data.

A data set's name is only a hint: several versions of a data set are in use, with other features in another order. A
layout is used if the features have its names and sizes, and the numbers agree with it.

Sources: the Open X-Embodiment data set spreadsheet and Octo's `oxe_standardization_transforms.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.episodes.action_evidence import ActionSample, evidence
from roboalign_ray.episodes.action_kinds import ActionFindings, ActionKind
from roboalign_ray.episodes.action_resolution import Decision, resolve_actions

CARTESIAN_DELTAS = (
    "delta_x [m]",
    "delta_y [m]",
    "delta_z [m]",
    "delta_roll [rad]",
    "delta_pitch [rad]",
    "delta_yaw [rad]",
    "gripper",
)
CARTESIAN_DELTA_KINDS: tuple[ActionKind, ...] = (*("delta",) * 3, *("delta_angle",) * 3, "hold")

# Leaves of the action dictionaries of Open X-Embodiment, with the kinds of their numbers.
_OXE_LEAVES: Mapping[str, ActionKind] = {
    "world_vector": "delta",
    "rotation_delta": "delta_angle",
    "base_displacement_vector": "delta",
    "base_displacement_vertical_rotation": "delta_angle",
    "terminate_episode": "event",
}
# Names of a whole dictionary's numbers, for data sets whose units and frames are also known.
_CARTESIAN_LEAVES = {"world_vector": CARTESIAN_DELTAS[:3], "rotation_delta": CARTESIAN_DELTAS[3:6]}
_BRIDGE_DICTIONARY = {"open_gripper": 1, "rotation_delta": 3, "world_vector": 3, "terminate_episode": 1}
_LEAST_CONFIRMED = 3  # of six pose dimensions; the others may hardly move in the first episodes


@dataclass(frozen=True)
class ActionLeaf:
    """One tensor of an action: its name within the action ("" if the action is one tensor), and its size."""

    name: str
    size: int


def rlds_findings(
    dataset: str, leaves: Sequence[ActionLeaf], samples: Sequence[ActionSample]
) -> ActionFindings:
    """Determine the kinds of an RLDS data set's actions.

    Args:
        dataset: name of the data set in its files.
        leaves: the action's tensors, in the order of their numbers.
        samples: a few episodes.
    """
    if dataset.startswith("bridge"):
        if [leaf.size for leaf in leaves] == [len(CARTESIAN_DELTAS)] and not leaves[0].name:
            return _flat_bridge(leaves, samples)
        if {leaf.name: leaf.size for leaf in leaves} == _BRIDGE_DICTIONARY:
            names = [n for leaf in leaves for n in _CARTESIAN_LEAVES.get(leaf.name, _own_names(leaf))]
            return resolve_actions(names, samples, published=_oxe(dataset, leaves, samples))
    names = [name for leaf in leaves for name in _own_names(leaf)]
    return resolve_actions(names, samples, published=_oxe(dataset, leaves, samples))


def _own_names(leaf: ActionLeaf) -> tuple[str, ...]:
    if leaf.size == 1 and leaf.name:
        return (leaf.name,)
    return tuple(f"{leaf.name or 'action'}[{d}]" for d in range(leaf.size))


def _flat_bridge(leaves: Sequence[ActionLeaf], samples: Sequence[ActionSample]) -> ActionFindings:
    """BridgeData V2: pose increments and a gripper, if the state changes accordingly."""
    reason = "bridge's published layout, which the state's changes confirm"
    found = [evidence(samples, dim, dim, angle=dim > 2) for dim in range(6)] if _has_state(samples, 7) else []
    follows = [item.follows for item in found]
    confirmed = follows.count("change") >= _LEAST_CONFIRMED and "state" not in follows
    gripper = np.concatenate([sample.actions[:, 6] for sample in samples]) if samples else np.array([-1.0])
    if confirmed and gripper.min() >= 0 and gripper.max() <= 1:
        published = {dim: (kind, reason) for dim, kind in enumerate(CARTESIAN_DELTA_KINDS)}
        # The gripper's command is checked by its range: a state with a delay does not show that it follows.
        return resolve_actions(CARTESIAN_DELTAS, samples, published=published)
    note = (
        "the data set is called bridge, but the data do not confirm bridge's layout "
        f"({', '.join(CARTESIAN_DELTAS)}): the numbers keep plain names"
    )
    return resolve_actions(_own_names(leaves[0]), samples, notes=[note])


def _has_state(samples: Sequence[ActionSample], size: int) -> bool:
    return bool(samples) and all(s.state is not None and s.state.shape[1] == size for s in samples)


def _oxe(dataset: str, leaves: Sequence[ActionLeaf], samples: Sequence[ActionSample]) -> dict[int, Decision]:
    """Kinds from the leaves' names; a gripper's also from its numbers."""
    published: dict[int, Decision] = {}
    dim = 0
    for leaf in leaves:
        base = leaf.name.rsplit("/", 1)[-1]
        for place in range(dim, dim + leaf.size):
            if base in _OXE_LEAVES:
                published[place] = _kind_of(base, leaf.size), "the leaf's meaning in Open X-Embodiment"
            elif base == "gripper_closedness_action" and _is_one_shot(dataset, samples, place):
                published[place] = "toggle", "one-shot commands with 0 for none, as published"
        dim += leaf.size
    return published


def _kind_of(leaf: str, size: int) -> ActionKind:
    if leaf == "terminate_episode" and size > 1:  # one of several modes is 1: the last row counts as a whole
        return "hold"
    if leaf == "rotation_delta" and size > 3:  # a quaternion or a matrix
        return "delta_rotation"
    return _OXE_LEAVES[leaf]


def _is_one_shot(dataset: str, samples: Sequence[ActionSample], dim: int) -> bool:
    """Whether a gripper_closedness_action is 0 between its commands; some data sets hold the command instead."""
    if not samples:
        return False
    values = np.concatenate([sample.actions[:, dim] for sample in samples])
    resting = float((np.abs(values) < 1e-6).mean())
    both_signs = bool(values.min() < 0 < values.max())
    return resting > 0.5 and (both_signs or dataset.startswith("fractal"))
