"""Declares the actions of an existing store, so that its statistics hold a complete action card."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np

from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.action_evidence import ActionSample
from roboalign_ray.episodes.action_kinds import UNKNOWN, ActionFindings
from roboalign_ray.episodes.action_option import declare, declare_bounds
from roboalign_ray.episodes.action_resolution import resolve_actions
from roboalign_ray.episodes.store import EpisodeStore
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.shards import STATISTICS, write_json

_SAMPLED = 20  # number of episodes that are examined


def declare_store(
    store: EpisodeStore, text: str, dims: int | None = None, *, bounds: str = ""
) -> ActionFindings:
    """Write kinds (which then apply to every row), bounds and recording of a store's actions to the store.

    Args:
        store: the store; open it again to use the new kinds.
        text: see `action_option.declare`; "" uses names and data.
        dims: number of dimensions of the actions, if the store holds several.
        bounds: see `action_option.declare_bounds`; "" keeps the present ones.

    Returns:
        the resulting findings about the kinds.

    Raises:
        UserError: `text`, `bounds` or `dims` do not fit, or the store cannot be written.
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
    findings = _known(store, dims)
    if text:
        findings = declare(findings, text)
    card = action_card_of(store, dims)
    known_bounds = declare_bounds(findings.names, card.bounds, bounds) if bounds else card.bounds
    actions = dict(store.statistics["actions"])
    actions[str(dims)] = {
        **actions[str(dims)],
        "kinds": list(findings.kinds),
        "declared": True,
        "bounds": [pair and list(pair) for pair in known_bounds],
        "rate": card.rate,
        "stride": card.stride,
        "embodiments": list(card.embodiments),
    }
    with whole_file(store.path / STATISTICS) as draft:
        write_json(draft, {**store.statistics, "actions": actions})
    return findings


def _known(store: EpisodeStore, dims: int) -> ActionFindings:
    """Findings from the store, its names and some of its episodes."""
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
    findings = resolve_actions(names, samples)
    pairs = [
        (kind, "as the store says") if kind != UNKNOWN else (found, reason)
        for kind, found, reason in zip(kinds, findings.kinds, findings.reasons, strict=True)
    ]
    return replace(findings, kinds=tuple(k for k, _ in pairs), reasons=tuple(r for _, r in pairs))
