"""Whether a store's actions mean what a world model was trained on."""

from __future__ import annotations

from pathlib import Path

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_check import check_cards
from roboalign_ray.episodes.action_card_of_store import action_card_of, fitted_action_card
from roboalign_ray.episodes.store import EpisodeStore

MOST_FRAMES_READ = 200_000  # actions of so many frames are read in about a second


def store_card(store: EpisodeStore, episodes: EpisodesConfig) -> ActionCard:
    """What the store's actions mean as a job reads them, with its stride.

    Statistics over a stride need every action: of a large store they are left out.

    Raises:
        UserError: the stride skips frames of actions whose kinds are not known.
    """
    if episodes.frame_stride > 1 and store.statistics["frames"] <= MOST_FRAMES_READ:
        return fitted_action_card(store, episodes)
    return action_card_of(store).strided(episodes.frame_stride)


def compare_actions(
    store: EpisodeStore, card: ActionCard, model: Path, model_card: ActionCard | None, frame_stride: int
) -> list[str]:
    """Refuse a store whose actions mean something else than the world model's.

    Args:
        card: of the store, as it is read with `frame_stride`.
        model: folder of the world model.
        model_card: its card, where it has one.

    Returns:
        notes for the user, one line each; they stop nothing.

    Raises:
        UserError: a field contradicts; it is named, with both values and what to do.
    """
    if model_card is None:
        return [
            f"{model}: holds no action card, so what its actions mean is not compared with the store's; "
            "write one with: roboalign assets action-card"
        ]
    check = check_cards(card, model_card, frame_stride=frame_stride)
    where = f"{store.path} and {model}"
    check.require(where)
    return [f"{where}: {note}" for note in check.notes]
