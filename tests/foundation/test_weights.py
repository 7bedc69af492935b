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
from roboalign_ray.foundation.weight_sync.manifest import (
    BaseMissing,
    CorruptVersion,
    TornVersion,
    WeightsRefused,
)
from roboalign_ray.foundation.weight_sync.packing import Receiver, pack
from roboalign_ray.foundation.weight_sync.versions import Parcel, VersionBoard

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


def delivered(state: State, version: int = 1, **changes) -> Receiver:
    receiver = Receiver()
    receiver.apply(*pack(state, version, WeightsConfig(**changes)))
    return receiver


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
    held = Receiver().apply(manifest, buckets)
    assert held.version == 7
    assert same(held.state, state)
    assert all(0 < bucket.nbytes <= bucket_bytes and bucket.flags.c_contiguous for bucket in buckets)
    assert manifest.size == sum(bucket.nbytes for bucket in buckets)
    for entry in manifest.entries:
        value = held.state[entry.name]
        assert not value.flags.writeable
        if len(entry.pieces) == 1:  # not cut: no copy
            assert any(np.shares_memory(value, bucket) for bucket in buckets)
        elif entry.pieces:
            assert value.nbytes > bucket_bytes // 64 * 64


def test_torch_tensors_of_any_layout_arrive_as_their_values() -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"t": base.T, "half": base.to(torch.bfloat16), "parameter": torch.nn.Parameter(base[:, ::2])}
    held = delivered(state).current  # type: ignore[arg-type]
    assert held is not None
    for name, value in state.items():
        np.testing.assert_array_equal(held.state[name], value.detach().float().numpy())


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16 and back, ties to even, by arithmetic on the bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_bfloat16_rounds_float32_to_nearest_even_and_leaves_the_rest() -> None:
    generator = np.random.default_rng(0)
    values = (generator.standard_normal(5000) * 10.0 ** generator.integers(-20, 20, 5000)).astype(np.float32)
    ties = (np.arange(2**14, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    state = {"w": np.concatenate([values, ties]), "exact": np.arange(5.0), "count": np.arange(5)}
    receiver = delivered(state, precision="bfloat16")
    assert receiver.current is not None
    got = receiver.current.state
    assert got["w"].tobytes() == rounded(state["w"]).tobytes()
    assert np.abs(got["w"][:5000] / values - 1).max() <= 2.0**-8
    assert same({name: got[name] for name in ("exact", "count")}, {n: state[n] for n in ("exact", "count")})
    # Packed again from what was held, the weights are the same ones: a late holder can have them from there.
    assert pack(got, 1, WeightsConfig(precision="bfloat16"))[0].digest == receiver.digest


@settings(max_examples=100, deadline=None)
@given(data=st.data(), state=states(), positions=st.lists(st.integers(0, 5000), min_size=1, max_size=3))
def test_whatever_happens_to_buckets_the_state_is_the_old_or_the_new_one(
    data: st.DataObject, state: State, positions: list[int]
) -> None:
    config = WeightsConfig(
        bucket_bytes=data.draw(st.integers(64, 400)), changed_only=data.draw(st.booleans())
    )
    newer = changed(state, positions)
    receiver = Receiver()
    first, old_buckets = pack(state, 0, config)
    old = receiver.apply(first, old_buckets)
    manifest, buckets = pack(newer, 1, config, old)
    arrived = data.draw(st.lists(st.sampled_from(buckets), max_size=2 * len(buckets))) if buckets else []
    arrived += data.draw(st.sampled_from([[], buckets, old_buckets[:1]]))
    arrived = [bucket.copy() for bucket in data.draw(st.permutations(arrived))]
    if arrived and data.draw(st.booleans()):
        victim = arrived[data.draw(st.integers(0, len(arrived) - 1))]
        victim[data.draw(st.integers(0, victim.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        receiver.apply(manifest, arrived)
    except WeightsRefused:
        assert receiver.current is old
        assert same(receiver.current.state, state)
        receiver.apply(manifest, buckets)  # and the next delivery is taken
    assert receiver.current is not None
    assert (receiver.current.version, receiver.digest) == (1, manifest.digest)
    assert same(receiver.current.state, newer)
    again = receiver.current
    assert receiver.apply(manifest, []) is again


def test_each_refusal_has_its_type() -> None:
    state = {"w": np.arange(100, dtype=np.float32)}
    config = WeightsConfig(bucket_bytes=128, changed_only=True)
    manifest, buckets = pack(state, 1, config)
    receiver = Receiver()
    with pytest.raises(TornVersion, match="1 of 4 buckets"):
        receiver.apply(manifest, buckets[1:])
    with pytest.raises(CorruptVersion, match="bucket 4"):
        receiver.apply(manifest, [*buckets, buckets[0][:64]])
    for field, value in (("version", 2), ("digest", "0"), ("base", "0"), ("entries", ())):
        with pytest.raises(CorruptVersion, match="seal"):
            receiver.apply(replace(manifest, **{field: value}), buckets)
    assert receiver.current is None
    assert receiver.digest == ""
    held = receiver.apply(manifest, buckets)
    late, patch = pack({"w": state["w"] + np.eye(1, 100, 3, dtype=np.float32)[0]}, 2, config, held)
    for other in (Receiver(), delivered({"w": state["w"] + 1})):
        before = other.current
        with pytest.raises(BaseMissing, match="version 2") as caught:
            other.apply(late, patch)
        assert other.current is before
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), BaseMissing)
    assert receiver.apply(pickle.loads(pickle.dumps(late)), patch).version == 2


@settings(max_examples=60, deadline=None)
@given(
    state=states(),
    steps=st.lists(st.lists(st.integers(0, 5000), max_size=3), min_size=1, max_size=4),
    block=st.sampled_from([1, 3, 8, 64, 4096]),
    precision=st.sampled_from(["exact", "bfloat16"]),
)
def test_changes_laid_one_upon_another_are_the_whole(
    state: State, steps: list[list[int]], block: int, precision: str
) -> None:
    config = WeightsConfig(bucket_bytes=256, changed_only=True, block=block, precision=precision)
    receiver = Receiver()
    receiver.apply(*pack(state, 0, config))
    for version, positions in enumerate(steps, 1):
        state = changed(state, positions)
        manifest, buckets = pack(state, version, config, receiver.current)
        receiver.apply(manifest, buckets)
        full = delivered(state, version, precision=precision)
        assert receiver.current is not None
        assert full.current is not None
        assert receiver.digest == full.digest
        assert same(receiver.current.state, full.current.state)
        assert manifest.size == 0 or positions


def test_what_changed_is_small_and_every_so_often_all_is_told() -> None:
    state = {"table": np.zeros((1000, 64), np.float32), "head": np.zeros(64, np.float32)}
    config = WeightsConfig(changed_only=True, full_every=3)
    receiver, sizes = Receiver(), []
    for version in range(1, 7):
        state["table"][version] += 1
        manifest, buckets = pack(state, version, config, receiver.current)
        receiver.apply(manifest, buckets)
        sizes.append((bool(manifest.base), manifest.size))
    whole = state["table"].nbytes + state["head"].nbytes
    assert [told for told, _ in sizes] == [False, True, False, True, True, False]
    assert all(size == 64 * 4 + 1000 * 64 // 8 if told else size == whole for told, size in sizes)
    # Another set of tensors is told in full where it differs, and a tensor that is gone is gone.
    other = {"table": state["table"], "new": np.ones(3)}
    held = receiver.apply(*pack(other, 7, config, receiver.current))
    assert same(held.state, other)


def test_real_optimizer_steps_come_through_as_changes() -> None:
    """A small rate leaves most weights where they are once rounded to bfloat16, and none in float32."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
    exact = WeightsConfig(changed_only=True)
    half = WeightsConfig(changed_only=True, precision="bfloat16")
    held = {config: delivered(model.state_dict(), precision=config.precision) for config in (exact, half)}
    for _ in range(2):
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
    shares = {}
    for config, receiver in held.items():
        manifest, buckets = pack(model.state_dict(), 2, config, receiver.current)
        got = receiver.apply(manifest, buckets).state
        shares[config.precision] = manifest.size / sum(4 * p.numel() for p in model.parameters())
        for name, value in model.state_dict().items():
            want = value.numpy() if config is exact else value.bfloat16().float().numpy()
            assert got[name].tobytes() == want.tobytes()
    assert shares["bfloat16"] < 0.1 < 0.9 < shares["exact"]


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
    state = delivered({"w": np.ones(3, np.float32)}).current
    assert state is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(state.state, 2, WeightsConfig(precision="bfloat16"))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), versions=st.integers(1, 8), full_every=st.integers(1, 4))
def test_any_holder_gets_to_the_newest_version(data: st.DataObject, versions: int, full_every: int) -> None:
    config = WeightsConfig(changed_only=True, full_every=full_every)
    state = {"w": np.zeros(600, np.float32)}
    board, sender = VersionBoard(), Receiver()
    assert (board.newest, board.fetch()) == (None, [])
    holders = [Receiver() for _ in range(3)]
    for version in range(1, versions + 1):
        state["w"][data.draw(st.integers(0, 599))] += version
        manifest, buckets = pack(state, version, config, sender.current)
        sender.apply(manifest, buckets)
        board.post(Parcel(manifest, tuple(buckets)))
        for holder in data.draw(st.lists(st.sampled_from(holders), unique_by=id)):
            for parcel in board.fetch(holder.digest):
                holder.apply(parcel.manifest, parcel.buckets)
            assert holder.current is not None
            assert holder.current.version == board.newest == version
            assert same(holder.current.state, state)
            assert board.fetch(holder.digest) == []


def test_the_board_takes_complete_newer_versions_only() -> None:
    state = {"w": np.arange(200, dtype=np.float32)}
    config = WeightsConfig(bucket_bytes=256, changed_only=True)
    manifest, buckets = pack(state, 4, config)
    board = VersionBoard()
    with pytest.raises(TornVersion):
        board.post(Parcel(manifest, tuple(buckets[:-1])))
    assert board.newest is None
    board.post(Parcel(manifest, tuple(buckets)))
    with pytest.raises(ValueError, match="not newer"):
        board.post(Parcel(manifest, tuple(buckets)))
    elsewhere = delivered({"w": state["w"] * 2}).current
    stranger = pack({"w": state["w"] * 2 + np.eye(1, 200, dtype=np.float32)[0]}, 5, config, elsewhere)
    assert stranger[0].base
    with pytest.raises(BaseMissing):
        board.post(Parcel(stranger[0], tuple(stranger[1])))
    assert board.newest == 4
    board.clear()
    board.post(Parcel(manifest, tuple(buckets)))
    assert board.newest == 4
