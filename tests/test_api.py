"""The public surface: its examples run, its names are few, and importing it is light."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest

import roboalign_ray
from roboalign_ray import api


def test_the_examples_of_the_docstrings_run() -> None:
    done = doctest.testmod(api)
    assert done.attempted >= 10
    assert done.failed == 0


def test_the_package_gives_the_names_of_its_public_module() -> None:
    assert set(roboalign_ray._PUBLIC) == set(api.__all__)
    for name in api.__all__:
        assert getattr(roboalign_ray, name) is getattr(api, name)
        assert name in dir(roboalign_ray)
    with pytest.raises(AttributeError, match="has no attribute 'open_stor'"):
        roboalign_ray.open_stor  # noqa: B018


def test_importing_the_names_loads_neither_torch_nor_ray() -> None:
    light = [name for name in api.__all__ if name not in api._LATER]
    code = f"from roboalign_ray import {', '.join(light)}\nimport sys\n"
    code += "print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_rolling_out_is_the_models_own_rollout() -> None:
    """The helper adds nothing: the same frames come out of `rollout` and `decode`, sample by sample."""
    store, model = api.open_store(), api.open_world_model()
    episode = store.read(store.ids[0])
    frames = api.roll_out(model, episode.view()[0], episode.actions[:7], seeds=(3, 4))
    prompt = api.Prompt("x", episode.view()[0], episode.view()[0], episode.actions[:7])
    [rollout] = model.rollout([prompt], [(3, 4)])
    np.testing.assert_array_equal(frames, model.decode(rollout))
    [alone] = api.roll_out(model, episode.view()[0], episode.actions[:7], seeds=(4,))
    np.testing.assert_array_equal(frames[1], alone)


def test_scores_are_the_judges_and_add_up() -> None:
    store, judge = api.open_store(), api.open_judge()
    episode = store.read("metaworld/drawer-open/0/expert")
    videos = [episode.view()[:26:2], episode.view()[:26:2][::-1]]
    scores = api.score(videos, episode.instruction, judge)
    direct = judge.score(videos, [episode.instruction] * 2)
    for given, row in zip(scores, direct.scores, strict=True):
        np.testing.assert_allclose([value for name, value in given.items() if name != "total"], row)
        assert given["total"] == pytest.approx(row.sum())


def test_a_loaded_job_takes_no_overrides() -> None:
    job = api.load_job("demo")
    assert api.load_job(job) is job
    with pytest.raises(api.UserError, match="takes no overrides"):
        api.load_job(job, "alignment.updates=3")
