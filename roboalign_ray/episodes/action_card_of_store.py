"""The action card of an episode store, as it was recorded or as a job reads it with its stride.

Stores of earlier versions do not hold all that a card states. What their episodes say is then read from them; what no
episode says stays not known.
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
    """What the store's actions mean at stride 1; statistics are those of the train split that it was written with.

    Args:
        store: reads no video, and of stores of this version nothing but the statistics.
        dims: which actions, where the store holds actions of several numbers of dimensions.

    Raises:
        UserError: no such actions, or the statistics are no card's.
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
    """The figures of statistics.json as a card's; None where the train split is empty or a figure is missing."""
    found = {key: figures.get(key) for key in ActionStatistics.model_fields}
    return None if not figures["frames"] or None in found.values() else found


def _read_facts(store: EpisodeStore, dims: int, *, alone: bool) -> dict[str, Any]:
    """How the actions were recorded, from the episodes themselves."""
    facts = RecordingFacts()
    columns = ("fps", "embodiment", "provenance", *(() if alone else ("actions",)))
    for number, cell in enumerate(store.cells(range(len(store)), columns)):
        if alone or len(cell["actions"][0]) == dims:
            where = f"{store.path}: episode '{store.ids[number]}'"
            provenance = parse_json(cell["provenance"] or "null", where=where, what="provenance")
            facts.add(cell["fps"], cell["embodiment"], provenance)
    return facts.as_json()


def fitted_action_card(store: EpisodeStore, config: EpisodesConfig) -> ActionCard:
    """What the actions mean as a job reads them: accumulated over its stride, statistics of its train split.

    The last group of an episode counts only where it is whole. An empty train split leaves the statistics out.

    Raises:
        UserError: the robots differ in their number of action dimensions, or the stride skips frames of actions whose
            kinds are not known.
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
