"""FSQ against an independent implementation, and its defining properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ as ReferenceFSQ

from roboalign_ray.tokenizer.fsq import FSQ

PUBLISHED_LEVELS = {
    8: (8, 6, 5),
    10: (8, 5, 5, 5),
    12: (7, 5, 5, 5, 5),
    14: (8, 8, 8, 6, 5),
    16: (8, 8, 8, 5, 5, 5),
}


@pytest.mark.parametrize("levels", PUBLISHED_LEVELS.values(), ids=str)
def test_values_codes_and_gradients_match_the_reference_library(levels):
    ours, reference = FSQ(levels), ReferenceFSQ(list(levels))
    z = torch.randn(3, 50, len(levels), generator=torch.Generator().manual_seed(0)) * 2
    ours_in, reference_in = z.clone().requires_grad_(), z.clone().requires_grad_()
    values, codes = ours(ours_in)
    expected_values, expected_codes = reference(reference_in)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(codes, expected_codes.long())
    values.square().sum().backward()
    expected_values.square().sum().backward()
    torch.testing.assert_close(ours_in.grad, reference_in.grad)


def test_the_paper_codebook_has_4375_codes():
    assert FSQ((7, 5, 5, 5, 5)).codes == 4375


@pytest.mark.parametrize("levels", PUBLISHED_LEVELS.values(), ids=str)
def test_every_code_survives_the_round_trip_and_is_reachable(levels):
    fsq = FSQ(levels)
    codes = torch.arange(fsq.codes)
    values = fsq.codes_to_values(codes)
    torch.testing.assert_close(fsq.values_to_codes(values), codes)
    # A latent that sits on a code's own level must be quantised to that code.
    half = fsq._half
    latent = (
        torch.atanh(((values * fsq._half_width + fsq._offset) / half).clamp(-0.9999, 0.9999)) - fsq._shift
    )
    torch.testing.assert_close(fsq(latent)[1], codes)


@settings(max_examples=30, deadline=None)
@given(
    levels=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    scale=st.floats(0.01, 100),
)
def test_codes_stay_in_range_and_values_on_the_grid(levels, seed, scale):
    fsq = FSQ(tuple(levels))
    z = torch.randn(64, len(levels), generator=torch.Generator().manual_seed(seed)) * scale
    values, codes = fsq(z)
    assert codes.min() >= 0
    assert codes.max() < fsq.codes
    torch.testing.assert_close(fsq.codes_to_values(codes), values.detach())


def test_autocast_does_not_touch_the_quantiser():
    fsq = FSQ((7, 5, 5, 5, 5))
    z = torch.randn(200, 5)
    with torch.autocast("cpu", torch.bfloat16):
        values, codes = fsq(z)
    assert values.dtype == torch.float32
    torch.testing.assert_close(codes, fsq(z)[1])
