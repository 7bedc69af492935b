"""The action card of an episode store, as recorded or as read with a job's stride.

Stores of earlier versions do not hold all fields of a card. These are then read from the episodes; fields that no
episode has remain unknown.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from roboalign_ray.config.episodes import EpisodesConfig
from roboalign_ray.episodes.action_card import ActionCard, ActionStatistics
from roboalign_ray.episodes.action_kinds import accumulate_actions
from roboalign_ray.episodes.store import EpisodeStore, check_action_kinds
from roboalign_ray.episodes.store_statistics import RecordingFacts
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.readers import parse_json


def action_card_of(store: EpisodeStore, dims: int | None = None) -> ActionCard:
    """The store's action card at stride 1; statistics are those of the train split at writing.

    Args:
        store: no video is read, and from stores of this version only the statistics.
        dims: number of dimensions of the actions, if the store holds several.

    Raises:
        UserError: there are no such actions, or the statistics are invalid.
    """
    known = store.action_dimensions()
    if dims is None and len(known) == 1:
        dims = next(iter(known))
    if dims not in known:
        held = " and of ".join(map(str, known))
        raise UserError(
            f"the store holds actions of {held} dimensions, not of {dims or 'one number of them'}",
            where=str(store.path),
            remedy="use a store with one kind of action",
        )
    names, kinds = known[dims]
    figures = store.statistics["actions"][str(dims)]
    facts = figures if "embodiments" in figures else _read_facts(store, dims, alone=len(known) == 1)
    return ActionCard.make(
        names,
        kinds,
        bounds=figures.get("bounds") or (),
        stride=facts["stride"],
        rate=facts["rate"],
        embodiments=facts["embodiments"] or (),
        statistics=_statistics(figures),
        where=str(store.path),
    )


def _statistics(figures: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics of statistics.json; None if the train split is empty or a figure is missing."""
    found = {key: figures.get(key) for key in ActionStatistics.model_fields}
    return None if not figures["frames"] or None in found.values() else found


def _read_facts(store: EpisodeStore, dims: int, *, alone: bool) -> dict[str, Any]:
    """How the actions were recorded, from the episodes."""
    facts = RecordingFacts()
    columns = ("fps", "embodiment", "provenance", *(() if alone else ("actions",)))
    for number, cell in enumerate(store.cells(range(len(store)), columns)):
        if alone or len(cell["actions"][0]) == dims:
            where = f"{store.path}: episode '{store.ids[number]}'"
            provenance = parse_json(cell["provenance"] or "null", where=where, what="provenance")
            facts.add(cell["fps"], cell["embodiment"], provenance)
    return facts.as_json()


def fitted_action_card(store: EpisodeStore, config: EpisodesConfig) -> ActionCard:
    """The action card as a job reads the store: accumulated over its stride, statistics of its train split.

    The last group of an episode counts only if it is complete. An empty train split gives no statistics.

    Raises:
        UserError: the robots differ in their number of action dimensions, or the stride skips frames of actions of
            unknown kinds.
    """
    stride = config.frame_stride
    check_action_kinds(store, stride)
    rows = [
        accumulate_actions(actions, kinds, stride, names=names)[: max(1, len(actions) // stride)]
        for actions, names, kinds in store.actions(store.split("train", config.held_out_fraction))
    ]
    if len({part.shape[1] for part in rows}) > 1:
        raise UserError("episodes differ in their number of action dimensions", where=str(store.path))
    statistics = ActionStatistics.of(np.concatenate(rows)) if rows else None
    return action_card_of(store).strided(stride).model_copy(update={"statistics": statistics})
