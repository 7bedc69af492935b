"""Whatever stands in a dataset's metadata, readers answer with an episode, a reason or a clear error: never a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corruption import places, with_value
from episode_files import (
    clip,
    lerobot_info,
    lerobot_rows,
    write_droid,
    write_lerobot_v2,
    write_lerobot_v3,
    write_rlds,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roboalign_ray.episodes.episode import Episode
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.folder import open_folder
from roboalign_ray.foundation.failures import UserError

LENGTH = 3


def v3(folder: Path) -> None:
    lerobot_info(folder, "v3.0", 1)
    write_lerobot_v3(folder, [clip(LENGTH)], [lerobot_rows(0, LENGTH)])


DATASETS = {
    "lerobot v2": (lambda folder: write_lerobot_v2(folder, [LENGTH]), "meta/info.json"),
    "lerobot v2 episodes": (lambda folder: write_lerobot_v2(folder, [LENGTH]), "meta/episodes.jsonl"),
    "lerobot v3": (v3, "meta/info.json"),
    "rlds": (lambda folder: write_rlds(folder, [LENGTH]), "features.json"),
    "droid": (lambda folder: write_droid(folder, [LENGTH]), "annotation/train/0.json"),
}
JUNK = [None, 0, -1, 1.5, "", "junk {nowhere}", [], [[]], {}, {"a": []}, True, float("nan")]


@pytest.fixture(scope="module", params=DATASETS)
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write, file = DATASETS[request.param]
    write(folder)
    assert any(isinstance(item, Episode) for item in open_folder(folder).episodes())
    return folder, folder / file, json.loads((folder / file).read_text())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_value_is_read_or_refused(dataset, data):
    folder, file, original = dataset
    path = data.draw(st.sampled_from(list(places(original))))
    changed = with_value(original, path, data.draw(st.sampled_from(JUNK)), remove=data.draw(st.booleans()))
    file.write_text(json.dumps(changed))
    try:
        items = list(open_folder(folder).episodes())
    except UserError:
        return
    finally:
        file.write_text(json.dumps(original))
    assert all(isinstance(item, Episode | Quarantined) for item in items)
