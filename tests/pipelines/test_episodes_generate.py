"""Generation on Ray writes what one process simulates, in the same order."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.config import SimulationConfig
from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.sources.metaworld import MetaworldSource
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError

CONFIG = SimulationConfig(
    tasks=("reach", "window-close"), starts_per_task=2, frames=6, height=16, width=16, workers=2, seed=5
)


@pytest.fixture(scope="module")
def source() -> MetaworldSource:
    try:
        return MetaworldSource(CONFIG)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_write_what_one_process_simulates(source: MetaworldSource, tmp_path: Path) -> None:
    from roboalign_ray.pipelines.episodes.generate import generate

    summary = generate(CONFIG, tmp_path / "made", show_progress=False)
    store = open_store(tmp_path / "made")
    wanted = list(source.episodes())
    assert summary.episodes == 8
    assert store.ids == [episode.episode_id for episode in wanted]
    card = action_card_of(store)
    assert card.bounds == source.action_bounds
    assert (card.embodiments, card.rate) == (("sawyer",), pytest.approx(20.0))  # 80 Hz, four steps a frame
    for number, episode in enumerate(wanted):
        np.testing.assert_array_equal(store.read(number).actions, episode.actions)


def test_the_card_s_command_makes_the_same_configuration() -> None:
    from roboalign_ray.pipelines.cli.episodes import simulation_config
    from roboalign_ray.pipelines.episodes.generate import command_of

    words = shlex.split(command_of(CONFIG, "made"))
    assert words[:4] == ["roboalign", "episodes", "generate", "made"]
    overrides = [word for word in words[4:] if word != "--set"]
    assert simulation_config({}, overrides) == CONFIG.model_copy(update={"workers": 0})
