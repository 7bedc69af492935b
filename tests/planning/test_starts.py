"""Start states from a store, and whether its actions mean what the world model's do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_job import SIZE, square_episode

from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning import starts
from roboalign_ray.world_model.protocol import ModelCard
from roboalign_ray.world_model.registry import open_world_model


def test_a_split_without_an_episode_names_the_options_that_fill_it(tmp_path):
    store = tmp_path / "store"
    write_store((square_episode(number) for number in range(2)), store, held_out_fraction=1e-9)
    card = ModelCard("toy", 1, SIZE, SIZE, 2)
    options = {"store": store, "windows": None, "instruction": None}
    assert starts.store_starts(card, split="train", **options)
    with pytest.raises(UserError, match=r"no episode is held out .*--held-out .*held_out_fraction"):
        starts.store_starts(card, split="held_out", **options)


@pytest.mark.parametrize(
    ("recorded", "trained", "fits"), [(3, 3, True), (1, 3, True), (3, 6, True), (2, 3, False)]
)
def test_strides_of_store_and_model_both_count_from_the_recording(
    token_job, monkeypatch, recorded, trained, fits
):
    """A store that was converted with a stride needs only the rest of the model's."""
    store = open_store(token_job / "store")
    plain = action_card_of(store).model_copy(update={"statistics": None})
    assert plain.rate is not None
    whole = plain.model_copy(update={"stride": 1, "rate": plain.rate * recorded})
    monkeypatch.setattr(starts, "action_card_of", lambda _: whole.strided(recorded))
    card = replace(open_world_model(token_job / "world_model").card, actions=whole.strided(trained))
    options = {"store": token_job / "store", "split": "train", "windows": None, "instruction": None}
    if fits:
        assert starts.store_starts(card, **options)
    else:
        with pytest.raises(UserError, match="every 2nd frame"):
            starts.store_starts(card, **options)
