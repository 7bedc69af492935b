"""The rubric against the published table, and its arithmetic against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import (
    DIMENSIONS,
    check_scores,
    denormalise,
    maxima,
    names,
    normalise,
    position,
)

# RoboAlign-R1's dimensions in its order.
PUBLISHED = {
    "instruction_following": 3,
    "manipulation_success": 2,
    "action_outcome_consistency": 1,
    "temporal_consistency": 1,
    "contact_realism": 1,
    "physics_adherence": 2,
}


def test_dimensions_are_the_published_ones() -> None:
    assert dict(zip(names(), maxima(), strict=True)) == PUBLISHED
    assert tuple(PUBLISHED) == names()
    assert maxima().sum() == 10
    assert maxima().dtype == np.float64
    assert [position(name) for name in PUBLISHED] == list(range(6))


def test_every_level_has_its_own_words() -> None:
    texts = [text for dimension in DIMENSIONS for text in dimension.levels.values()]
    assert len(set(texts)) == len(texts) == sum(maximum + 1 for maximum in PUBLISHED.values())
    for dimension in DIMENSIONS:
        assert list(dimension.levels) == list(range(dimension.maximum + 1))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6))
def test_shares_and_points_are_inverse(shares: list[float]) -> None:
    array = np.array(shares)
    points = denormalise(array)
    assert np.allclose(points, [share * most for share, most in zip(shares, PUBLISHED.values(), strict=True)])
    assert np.allclose(normalise(points), array)
    assert normalise(points.astype(np.float32)).dtype == np.float32
    check_scores(points)


def test_any_leading_axes() -> None:
    assert normalise(np.tile(maxima(), (4, 3, 1))).tolist() == np.ones((4, 3, 6)).tolist()
    assert normalise(np.array([3, 2, 1, 1, 1, 2])).tolist() == [1.0] * 6  # whole numbers are not cut off


@pytest.mark.parametrize("value", [-0.1, 1.01, np.nan, np.inf])
def test_scores_outside_their_range_are_told(value: float) -> None:
    scores = maxima()
    scores[3] = value
    with pytest.raises(UserError, match=r"temporal_consistency is .* not within 0 to 1"):
        check_scores(scores)


def test_wrong_shapes_and_names_are_told() -> None:
    with pytest.raises(UserError, match="6 dimensions"):
        normalise(np.zeros((6, 5)))
    with pytest.raises(UserError, match="unknown dimension 'style'"):
        position("style")
