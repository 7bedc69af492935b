"""Say of a store that exists what its actions are: the kinds are written to its statistics and hold for every row."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from roboalign_ray.episodes.action_evidence import ActionSample
from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionCard
from roboalign_ray.episodes.action_option import declare
from roboalign_ray.episodes.action_resolution import resolve_actions
from roboalign_ray.episodes.store import EpisodeStore
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.shards import STATISTICS, write_json

_SAMPLED = 20  # episodes that are looked at


def declare_store(store: EpisodeStore, text: str, dims: int | None = None) -> ActionCard:
    """Write the kinds of a store's actions to it.

    Args:
        store: the store; open it again to read with the new kinds.
        text: see `action_option.declare`; "" takes what names and data say.
        dims: which actions, where the store holds actions of several numbers of dimensions.

    Returns:
        what is now known.

    Raises:
        UserError: `text` or `dims` do not fit, or the store cannot be written.
    """
    known = store.action_dimensions()
    if dims is None and len(known) == 1:
        dims = next(iter(known))
    if dims not in known:
        raise UserError(
            f"the store holds actions of {' and of '.join(map(str, known))} dimensions",
            where=str(store.path),
            remedy="say which ones with --dims",
        )
    card = _known(store, dims)
    if text:
        card = declare(card, text)
    actions = dict(store.statistics["actions"])
    actions[str(dims)] = {**actions[str(dims)], "kinds": list(card.kinds), "declared": True}
    with whole_file(store.path / STATISTICS) as draft:
        write_json(draft, {**store.statistics, "actions": actions})
    return card


def _known(store: EpisodeStore, dims: int) -> ActionCard:
    """What the store, its names and some of its episodes say."""
    names, kinds = store.action_dimensions()[dims]
    cells = store.cells(range(len(store)), ("actions", "state"))
    fitting = (cell for cell in cells if cell["actions"] and len(cell["actions"][0]) == dims)
    samples = [
        ActionSample(
            np.asarray(cell["actions"], dtype=np.float32),
            None if cell["state"] is None else np.asarray(cell["state"], dtype=np.float32),
        )
        for cell in islice(fitting, _SAMPLED)
    ]
    card = resolve_actions(names, samples)
    pairs = [
        (kind, "as the store says") if kind != UNKNOWN else (found, reason)
        for kind, found, reason in zip(kinds, card.kinds, card.reasons, strict=True)
    ]
    return replace(card, kinds=tuple(k for k, _ in pairs), reasons=tuple(r for _, r in pairs))
