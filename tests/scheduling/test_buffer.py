"""The buffer's rules one at a time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.alignment.advantages import group_advantages
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.scheduling.experience_buffer import ExperienceBuffer, Worth, worth_of


def filled(*groups, **options):
    buffer = ExperienceBuffer(**options)
    for group in groups:
        buffer.add(group, f"reference {group}", [0.0, 1.0])
    return buffer


def test_first_started_first_taken():
    buffer = filled(5, 1, 4, 2)
    assert buffer.oldest(3) == (1, 2, 4)
    assert buffer.oldest(5) is None
    assert [held.reference for held in buffer.take((1, 2))] == ["reference 1", "reference 2"]
    assert len(buffer) == 2
    assert buffer.oldest(2) == (4, 5)


def test_a_group_is_taken_once():
    buffer = filled(1, 2, 3)
    buffer.take((2, 1))
    with pytest.raises(ValueError, match="taken already"):
        buffer.take((3,))
    buffer.rollback()
    assert [held.group for held in buffer.take((2, 1))] == [2, 1]
    buffer.commit()
    with pytest.raises(ValueError, match="not in the buffer"):
        buffer.take((1,))
    with pytest.raises(ValueError, match="twice"):
        buffer.take((3, 3))
    with pytest.raises(ValueError, match="already"):
        buffer.add(3, None, [1.0])
    assert buffer.counts["committed"] == 2


def test_what_is_taken_cannot_be_removed():
    buffer = filled(1, 2)
    buffer.take((1,))
    with pytest.raises(ValueError, match="is taken"):
        buffer.remove([1])
    buffer.remove([2])
    assert 2 not in buffer
    assert 1 in buffer


def test_flat_groups_are_refused_up_to_a_limit():
    buffer = ExperienceBuffer("resample", resample_limit=2)
    flat = [0.3, 0.3, math.nan]
    assert [buffer.add(n, None, flat) for n in range(4)] == [False, False, True, True]
    assert buffer.add(9, None, [math.nan, 1.0])  # nothing to compare, beyond the limit too
    buffer.take((2,))
    buffer.commit()
    assert not buffer.add(10, None, flat)
    assert buffer.counts == {"flat": 5, "unusable": 1, "resampled": 3, "committed": 1}
    assert ExperienceBuffer("keep").add(0, None, flat)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.1, 0.1 + 0.2, 0.3, -1.0, math.nan, math.inf]), min_size=1, max_size=5))
def test_flat_means_that_no_advantage_is_left(rewards):
    scores = [Failed("lost") if math.isnan(reward) else Scored(reward) for reward in rewards]
    advantages = group_advantages(scores)
    expected = (
        Worth.UNUSABLE if advantages.dropped else Worth.USEFUL if advantages.values.any() else Worth.FLAT
    )
    assert worth_of(rewards) is expected


def test_the_state_goes_round_and_references_are_packed():
    buffer = filled(3, 1, 2, flat_groups="resample", resample_limit=5)
    buffer.add(7, None, [1.0, 1.0])
    buffer.take((1, 3))
    text = json.dumps(buffer.state_dict(pack=lambda reference: [reference]))
    other = ExperienceBuffer("resample", resample_limit=5)
    other.load_state_dict(json.loads(text), unpack=lambda packed: packed[0])
    assert json.dumps(other.state_dict(pack=lambda reference: [reference])) == text
    assert other.taken == (1, 3)
    other.rollback()
    held = other.take((1, 2, 3))
    assert [h.reference for h in held] == ["reference 1", "reference 2", "reference 3"]
    assert np.array_equal(held[0].rewards, [0.0, 1.0])
