"""Splits: stable, proportionate, and never through a group."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.episodes.splits import check_split, group_fraction, split_of
from roboalign_ray.foundation.failures import UserError


def test_a_group_hashes_to_the_same_place_for_ever() -> None:
    digest = hashlib.sha256(b"roboalign_ray/split/1/metaworld/push/0").hexdigest()
    assert group_fraction("metaworld/push/0") == pytest.approx(int(digest[:16], 16) / 16**16)


def test_the_share_is_met() -> None:
    held_out = sum(split_of(f"group/{number}", 0.1) == "held_out" for number in range(10_000))
    assert 900 < held_out < 1100  # five sigma is 150


@given(st.text(), st.floats(0.01, 0.98), st.floats(0.001, 0.5))
def test_a_larger_share_only_adds(group: str, fraction: float, more: float) -> None:
    if split_of(group, fraction) == "held_out":
        assert split_of(group, min(0.99, fraction + more)) == "held_out"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_impossible_shares_are_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        split_of("group", fraction)


def test_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="train, held_out"):
        check_split("validation")
