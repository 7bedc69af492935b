"""The C forward pass against PyTorch's, and its promises: same bits in any batch, a fallback, one cached build."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.native import build
from roboalign_ray.world_model.token.packed import PackedTransformer, Workspace

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler on this machine")


@dataclass(frozen=True)
class Shape:
    """What the forward pass reads of a LlamaConfig."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    num_hidden_layers: int = 2
    rms_norm_eps: float = 1e-6

    @property
    def rope_parameters(self) -> dict[str, float]:
        return {"rope_theta": 10_000.0}


# Heads of 8, 16, 32, 40 and 64; widths that are no multiple of a panel; heads that share keys.
SHAPES = (
    Shape(32, 4, 4, 48),
    Shape(48, 3, 1, 40),
    Shape(96, 3, 3, 100),
    Shape(80, 2, 1, 33),
    Shape(128, 2, 2, 72),
    Shape(128, 4, 2, 64, num_hidden_layers=1),
)


def layout_of(codes: int) -> SequenceLayout:
    return SequenceLayout(context_tokens=16, dynamics_tokens=4, action_tokens=3, codes=codes, action_bins=11)


def weights(shape: Shape, layout: SequenceLayout, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under a LLaMA's names, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(size, generator=generator) * scale

    wide, ffn = shape.hidden_size, shape.intermediate_size
    narrow = wide // shape.num_attention_heads * shape.num_key_value_heads
    found = {
        "model.embed_tokens.weight": random(layout.vocabulary, wide),
        "lm_head.weight": random(layout.vocabulary, wide, scale=wide**-0.5),
        "model.norm.weight": 1 + random(wide, scale=0.2),
    }
    for index in range(shape.num_hidden_layers):
        at = f"model.layers.{index}."
        for name, out, into in (
            ("self_attn.q_proj", wide, wide),
            ("self_attn.k_proj", narrow, wide),
            ("self_attn.v_proj", narrow, wide),
            ("self_attn.o_proj", wide, wide),
            ("mlp.gate_proj", ffn, wide),
            ("mlp.up_proj", ffn, wide),
            ("mlp.down_proj", wide, ffn),
        ):
            found[f"{at}{name}.weight"] = random(out, into, scale=1.5 * into**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}{name}.weight"] = 1 + random(wide, scale=0.2)
    return found


def packed(
    shape: Shape, layout: SequenceLayout, *, native: bool, seed: int = 0, **options
) -> PackedTransformer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "1" if native else "0")
        made = PackedTransformer(weights(shape, layout, seed), shape, layout, **options)
    assert (made.native is not None) == native
    return made


def run(
    model: PackedTransformer, ids: torch.Tensor, shared: int, samples: int, evict: bool
) -> list[torch.Tensor]:
    """Logits of a whole rollout's kinds of pass: prefix once per group, then own tokens one by one and in chunks.

    Args:
        ids: [rows, L]; a group's rows agree on the first `shared` tokens, which are fed once per group.
        shared, samples: length of the prefix (0 for none), and rows per group.
        evict: drop tokens in the "sinks" way on the way.
    """
    rows, length = ids.shape
    found = []

    def feed(cache, tokens: torch.Tensor) -> None:
        found.append(model.forward(tokens, cache, Workspace(model, *tokens.shape)))

    if shared:
        prefix = model.empty_cache(rows // samples, shared)
        feed(prefix, ids[::samples, :shared])
        found[-1] = found[-1].repeat_interleave(samples, 0)
        cache = prefix.branch(samples, length - shared)
    else:
        cache = model.empty_cache(rows, length)
    at, chunks = shared, [1, 1, 5, 1, 4, 1, 1, 3, 1]
    while at < length:
        chunk = min(chunks[len(found) % len(chunks)], length - at)
        feed(cache, ids[:, at : at + chunk])
        at += chunk
        if evict and len(found) in (5, 9):
            cache.evict(min(3, shared) if shared else 0, 2, model.phases(cache.position + 1))
    return found


def tokens(
    layout: SequenceLayout, groups: int, samples: int, shared: int, own: int, seed: int
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    prefix = torch.randint(layout.vocabulary, (groups, 1, shared), generator=generator)
    rest = torch.randint(layout.vocabulary, (groups, samples, own), generator=generator)
    return torch.cat([prefix.expand(-1, samples, -1), rest], dim=-1).flatten(0, 1)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("groups", "samples", "shared", "evict"),
    [(1, 8, 21, False), (2, 3, 8, False), (3, 1, 0, False), (1, 11, 1, False), (2, 5, 13, True)],
)
def test_equals_the_pytorch_pass(shape, groups, samples, shared, evict):
    layout = layout_of(codes=37)
    ids = tokens(layout, groups, samples, shared, own=29, seed=shared)
    expected = run(packed(shape, layout, native=False), ids, shared, samples, evict)
    found = run(packed(shape, layout, native=True), ids, shared, samples, evict)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-5)
    assert expected[-1].std() > 0.3


@needs_compiler
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_rows_bits_depend_on_nothing_else(data):
    shape = data.draw(st.sampled_from(SHAPES))
    groups, samples = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 10))
    shared, own = data.draw(st.integers(0, 19)), data.draw(st.integers(1, 20))
    threads = data.draw(st.integers(1, 3))
    layout = layout_of(codes=data.draw(st.sampled_from([5, 37, 64])))
    model = packed(shape, layout, native=True)
    ids = tokens(layout, groups, samples, shared, own, seed=1)
    group, sample = data.draw(st.integers(0, groups - 1)), data.draw(st.integers(0, samples - 1))
    row = group * samples + sample
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        together = run(model, ids, shared, samples, evict=False)
    finally:
        torch.set_num_threads(before)
    alone = run(model, ids[row : row + 1], shared, 1, evict=False)
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_array_equal(ours[0].numpy(), theirs[row].numpy())


def avx512(name: str) -> bool:
    """Whether the processor has an AVX-512 instruction set of that name."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and f" {name} " in cpuinfo.read_text()


@needs_compiler
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_kernel_of_avx_512_gives_the_same_bits(data):
    """Built from pairs of narrower vectors where the processor has none of 64 bytes."""
    shape, samples = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(1, 10))
    shared, own = data.draw(st.integers(0, 19)), data.draw(st.integers(1, 20))
    layout = layout_of(codes=data.draw(st.sampled_from([5, 37, 64])))
    ids = tokens(layout, 1, samples, shared, own, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "COMMON_FLAGS", (*build.COMMON_FLAGS, "-DWIDE"))
        compiler = build._compiler(os.environ["PATH"])
        library = build._opened(build._built(compiler))
        patch.setattr("roboalign_ray.world_model.token.packed.native_library", lambda *_: library)
        wide = packed(shape, layout, native=True)
    own_width = packed(shape, layout, native=True)
    assert library.panel_width() == 32
    assert own_width.native._library.panel_width() == (32 if avx512("avx512f") else 16)
    for ours, theirs in zip(
        run(wide, ids, shared, samples, False), run(own_width, ids, shared, samples, False), strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@needs_compiler
def test_helpers_sleep_between_passes():
    """Threads that watch for work take processor time from whatever else is on the machine."""
    layout, before = layout_of(codes=37), torch.get_num_threads()
    model, ids = packed(SHAPES[0], layout, native=True), tokens(layout, 1, 2, 4, 5, seed=0)
    try:
        torch.set_num_threads(3)
        run(model, ids, 4, 2, False)
    finally:
        torch.set_num_threads(before)
    time.sleep(0.05)
    started = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - started < 0.2  # two helpers that spin would use .4 s and more


@needs_compiler
def test_passes_at_the_same_time_give_the_same_bits():
    """One call has the helpers, the other works alone."""
    layout, before = layout_of(codes=37), torch.get_num_threads()
    model, ids = packed(SHAPES[4], layout, native=True), tokens(layout, 1, 5, 4, 25, seed=0)
    expected = run(model, ids, 4, 5, False)

    def one(_: int) -> list[torch.Tensor]:
        torch.set_num_threads(3)
        return run(model, ids, 4, 5, False)

    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(one, range(30)))
    finally:
        torch.set_num_threads(before)
    for each in found:
        for ours, theirs in zip(each, expected, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def _logits_of_a_child(model, ids, queue) -> None:
    queue.put(run(model, ids, 4, 2, False)[-1].numpy())


@needs_compiler
def test_works_after_a_fork():
    """The pool's threads do not survive a fork; the child must not wait for them."""
    layout, before = layout_of(codes=37), torch.get_num_threads()
    model, ids = packed(SHAPES[0], layout, native=True), tokens(layout, 1, 2, 4, 5, seed=0)
    try:
        torch.set_num_threads(2)
        expected = run(model, ids, 4, 2, False)[-1].numpy()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_logits_of_a_child, args=(model, ids, queue))
        child.start()
        child.join(120)
        assert child.exitcode == 0
        np.testing.assert_array_equal(queue.get(), expected)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_an_id_outside_the_vocabulary_is_told():
    layout = layout_of(codes=37)
    model = packed(SHAPES[0], layout, native=True)
    ids = torch.tensor([[3, layout.vocabulary]])
    with pytest.raises(UserError, match="outside the vocabulary"):
        model.forward(ids, model.empty_cache(1, 2), Workspace(model, 1, 2))


@pytest.fixture
def no_library_yet(monkeypatch, tmp_path):
    """As in a new process of a new user."""
    monkeypatch.setenv("ROBOALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv(build.SWITCH, "1")
    monkeypatch.delenv("CC", raising=False)
    build._library.cache_clear()
    yield tmp_path / "native"
    build._library.cache_clear()


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_without_a_compiler_pytorch_serves(no_library_yet, how, monkeypatch, caplog, tmp_path):
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    if how == "broken":
        compiler.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    layout = layout_of(codes=37)
    with caplog.at_level(logging.WARNING, logger=build.__name__):
        models = [PackedTransformer(weights(SHAPES[0], layout, 0), SHAPES[0], layout) for _ in range(2)]
    assert [record.message for record in caplog.records] == [
        "rollout engine runs on PyTorch's kernels, several times slower: "
        + (
            "no C compiler found (cc, gcc, clang or $CC); install one, such as Debian's package gcc"
            if how == "missing"
            else f"{compiler} cannot compile decode.c: fatal error: no such thing"
        )
    ]
    ids = tokens(layout, 1, 2, 4, 5, seed=0)
    assert all(model.native is None for model in models)
    torch.testing.assert_close(
        run(models[0], ids, 4, 2, False), run(packed(SHAPES[0], layout, native=False), ids, 4, 2, False)
    )


@needs_compiler
def test_processes_that_compile_at_once_share_one_file(no_library_yet):
    with ThreadPoolExecutor(2) as pool:
        compiler = build._compiler(os.environ["PATH"])
        first, second = pool.map(build._built, [compiler, compiler])
    assert first == second
    assert list(no_library_yet.iterdir()) == [first]
    written = first.stat().st_mtime_ns
    assert build._built(compiler).stat().st_mtime_ns == written


def test_serves_float32_on_a_cpu_only(monkeypatch):
    monkeypatch.setenv(build.SWITCH, "1")
    cpu = torch.device("cpu")
    assert build.native_library(torch.bfloat16, cpu, 32) is None
    assert build.native_library(torch.float32, torch.device("cuda"), 32) is None
    assert build.native_library(torch.float32, cpu, 12) is None
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.native_library(torch.float32, cpu, 32) is None


def test_the_source_is_installed_with_the_package():
    assert all(resources.files(build.__package__).joinpath(name).is_file() for name in build.SOURCES)


@needs_compiler
def test_another_processor_has_another_file(no_library_yet, monkeypatch):
    """A home folder may be shared by machines of which only some have AVX-512."""
    compiler = build._compiler(os.environ["PATH"])
    first = build._built(compiler)
    monkeypatch.setattr(build, "_processor", lambda: "x86_64 flags: avx2 avx512f")
    assert build._built(compiler) != first
