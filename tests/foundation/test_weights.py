"""Weights on their way: what arrives is bit for bit what was sent, or nothing arrives."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.config.weights import WeightsConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.weight_sync.manifest import CorruptVersion, TornVersion, WeightsRefused
from roboalign_ray.foundation.weight_sync.packing import pack, unpack

State = dict[str, np.ndarray]
TYPES = ["float32", "float64", "float16", "int64", "int8", "bool"]
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def array(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Any bits, infinities and NaNs among them."""
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    raw = generator.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


@st.composite
def states(draw: st.DrawFn) -> State:
    parts = draw(
        st.lists(st.tuples(SHAPES, st.sampled_from(TYPES), st.integers(0, 99)), min_size=1, max_size=6)
    )
    return {f"layer.{n}": array(*part) for n, part in enumerate(parts)}


def same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def delivered(state: State, **changes) -> State:
    return unpack(*pack(state, 1, WeightsConfig(**changes)))


def changed(state: State, positions: list[int]) -> State:
    """The state with one byte of some tensors changed."""
    other = {name: value.copy() for name, value in state.items()}
    filled = [value for value in other.values() if value.size and value.dtype != bool]
    for position in positions if filled else ():
        flat = filled[position % len(filled)].reshape(-1).view(np.uint8)
        flat[position % flat.size] ^= 1 + position % 255
    return other


@settings(max_examples=60, deadline=None)
@given(state=states(), bucket_bytes=st.integers(64, 2000))
def test_every_bit_comes_through_in_buckets_that_keep_their_limit(state: State, bucket_bytes: int) -> None:
    manifest, buckets = pack(state, 7, WeightsConfig(bucket_bytes=bucket_bytes))
    assert manifest.version == 7
    held = unpack(manifest, buckets)
    assert same(held, state)
    assert all(0 < bucket.nbytes <= bucket_bytes and bucket.flags.c_contiguous for bucket in buckets)
    assert manifest.size == sum(bucket.nbytes for bucket in buckets)
    for entry in manifest.entries:
        value = held[entry.name]
        assert not value.flags.writeable
        if len(entry.pieces) == 1:  # not cut: no copy
            assert any(np.shares_memory(value, bucket) for bucket in buckets)
        elif entry.pieces:
            assert value.nbytes > bucket_bytes // 64 * 64


def test_torch_tensors_of_any_layout_arrive_as_their_values() -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"t": base.T, "half": base.to(torch.bfloat16), "parameter": torch.nn.Parameter(base[:, ::2])}
    held = delivered(state)  # type: ignore[arg-type]
    for name, value in state.items():
        np.testing.assert_array_equal(held[name], value.detach().float().numpy())


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16 and back, ties to even, by arithmetic on the bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_bfloat16_rounds_float32_to_nearest_even_and_leaves_the_rest() -> None:
    generator = np.random.default_rng(0)
    values = (generator.standard_normal(5000) * 10.0 ** generator.integers(-20, 20, 5000)).astype(np.float32)
    ties = (np.arange(2**14, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    state = {"w": np.concatenate([values, ties]), "exact": np.arange(5.0), "count": np.arange(5)}
    got = delivered(state, precision="bfloat16")
    assert got["w"].tobytes() == rounded(state["w"]).tobytes()
    assert np.abs(got["w"][:5000] / values - 1).max() <= 2.0**-8
    assert same({name: got[name] for name in ("exact", "count")}, {n: state[n] for n in ("exact", "count")})
    # Packed again from what arrived, the weights are the same ones: rounding twice is rounding once.
    assert same(delivered(got, precision="bfloat16"), got)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), state=states(), positions=st.lists(st.integers(0, 5000), min_size=1, max_size=3))
def test_whatever_happens_to_buckets_the_state_arrives_or_is_refused(
    data: st.DataObject, state: State, positions: list[int]
) -> None:
    config = WeightsConfig(bucket_bytes=data.draw(st.integers(64, 400)))
    newer = changed(state, positions)
    _, old_buckets = pack(state, 0, config)
    manifest, buckets = pack(newer, 1, config)
    arrived = data.draw(st.lists(st.sampled_from(buckets), max_size=2 * len(buckets))) if buckets else []
    arrived += data.draw(st.sampled_from([[], buckets, old_buckets[:1]]))
    arrived = [bucket.copy() for bucket in data.draw(st.permutations(arrived))]
    if arrived and data.draw(st.booleans()):
        victim = arrived[data.draw(st.integers(0, len(arrived) - 1))]
        victim[data.draw(st.integers(0, victim.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        got = unpack(manifest, arrived)
    except WeightsRefused:
        got = unpack(manifest, buckets)  # and the next delivery is taken
    assert same(got, newer)


def test_each_refusal_has_its_type() -> None:
    state = {"w": np.arange(100, dtype=np.float32)}
    manifest, buckets = pack(state, 1, WeightsConfig(bucket_bytes=128))
    with pytest.raises(TornVersion, match="1 of 4 buckets"):
        unpack(manifest, buckets[1:])
    with pytest.raises(CorruptVersion, match="bucket 4"):
        unpack(manifest, [*buckets, buckets[0][:64]])
    for field, value in (("version", 2), ("entries", ()), ("buckets", manifest.buckets[:1])):
        with pytest.raises(CorruptVersion, match="seal") as caught:
            unpack(replace(manifest, **{field: value}), buckets)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), CorruptVersion)
    assert same(unpack(pickle.loads(pickle.dumps(manifest)), buckets), state)


def test_what_cannot_travel_is_said() -> None:
    with pytest.raises(UserError, match="version -1"):
        pack({}, -1, WeightsConfig())
    with pytest.raises(UserError, match=r"z: weights of type torch.complex128"):
        pack({"z": np.zeros(2, complex)}, 1, WeightsConfig())
    with pytest.raises(UserError, match=r"o: weights of type object"):
        pack({"o": np.array([None])}, 1, WeightsConfig())
    with pytest.raises(UserError, match=r"f: weights of type torch.float8"):
        pack({"f": torch.zeros(2).to(torch.float8_e4m3fn)}, 1, WeightsConfig())


def test_read_only_arrays_are_packed_without_a_warning() -> None:
    state = delivered({"w": np.ones(3, np.float32)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(state, 2, WeightsConfig(precision="bfloat16"))
