"""Action cards of what was made before cards were written: of a world model, from the episodes it was trained on."""

from __future__ import annotations

from pathlib import Path

from roboalign_ray.config import JobConfig
from roboalign_ray.config.paths import with_absolute_paths
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError


def write_action_card(config: JobConfig, model: Path) -> ActionCard:
    """Write what the actions of a world model mean into its folder, in place of a card that stands there.

    Args:
        config: of its pre-training: the episodes and their stride.
        model: its folder.

    Raises:
        UserError: no world model there, or the episodes have another number of action dimensions.
    """
    binner = ActionBinner.load(model)
    card = fitted_action_card(open_store(with_absolute_paths(config).episodes.store), config.episodes)
    if card.dims != binner.dims:
        raise UserError(
            f"its actions have {binner.dims} dimensions, the store's {card.dims}",
            where=str(model),
            remedy="set episodes.store to the one that it was pre-trained on",
        )
    card.save(model)
    return card
