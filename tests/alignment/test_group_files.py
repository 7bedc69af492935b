"""Scored groups survive a file bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from made_groups import make_group

from roboalign_ray.alignment.group_files import load_group, save_group
from roboalign_ray.foundation.failures import UserError


@pytest.mark.parametrize("seed", range(3))
def test_a_group_comes_back_as_it_was(tmp_path, seed):
    group = make_group(seed)
    save_group(tmp_path / "group.npz", group)
    again = load_group(tmp_path / "group.npz")
    for name in ("prompt_id", "instruction", "seeds", "peak_sequence", "cache_bytes"):
        assert getattr(again.rollout, name) == getattr(group.rollout, name)
    np.testing.assert_array_equal(again.rollout.seconds_per_frame, group.rollout.seconds_per_frame)
    for ours, theirs in zip(again.rollout.segments, group.rollout.segments, strict=True):
        assert (ours.version, ours.exact) == (theirs.version, theirs.exact)
        for name in ("context", "given", "actions", "tokens", "logprobs"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    first, failed, broken = again.scores
    assert first == group.scores[0]
    np.testing.assert_array_equal(first.per_frame, group.scores[0].per_frame)
    assert failed == group.scores[1]
    assert np.isnan(broken.total)
    assert broken.per_frame is None
    assert again.record().as_json()["versions"] == group.record().as_json()["versions"]


def test_a_file_that_is_missing_or_cut_is_told(tmp_path):
    path = tmp_path / "group.npz"
    with pytest.raises(UserError, match="no scored group here"):
        load_group(path)
    save_group(path, make_group(0))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"group\.npz"):
        load_group(path)
