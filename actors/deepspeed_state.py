"""Saves and restores the state of a DeepSpeed engine in files that hold data only.

    folder/
      model.safetensors       trained weights and buffers, by the first rank; with ZeRO 3 buffers alone
      rank-0.safetensors      that rank's fp32 weights, AdamW moments, step counts, and the caller's `extra`
      rank-1.safetensors      …

DeepSpeed's own checkpoints are pickles, which run code when they are read. Its optimizers export and import their state
as plain trees for every ZeRO stage; `state_files` stores these trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.state_files import StateError, read_state, write_state

_MODEL = "model.safetensors"
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
# These entries hold no state: the loss scaler is constant without float16, the others describe this process.
_LEFT_OUT = {"loss_scaler", "param_slice_mappings", "zero_stage", "universal_checkpoint_info"}

_FP32_WEIGHTS = {"single_partition_of_fp32_groups", "fp32_flat_groups", "fp32_groups"}


def save_engine(engine: Any, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write an engine's state between two steps. Every rank calls this.

    Args:
        engine: a `deepspeed.DeepSpeedEngine` in float32 or bfloat16, any ZeRO stage.
        folder: folder that all ranks can reach; created if absent.
        extra: data of this rank, in the types that `write_state` accepts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _partitioned(engine):
        if engine.global_rank == 0:
            write_state(folder / _MODEL, _weights(engine))
        state = {key: value for key, value in engine.optimizer.state_dict().items() if key not in _LEFT_OUT}
        counters = {name: getattr(engine, name) for name in _COUNTERS}
        held = {
            "ranks": engine.dp_world_size,
            "stage": _stage(engine),
            "counters": counters,
            "optimizer": state,
            "extra": dict(extra or {}),
        }
        write_state(_rank_file(engine, folder), held)


def load_engine(engine: Any, folder: Path) -> dict[str, Any]:
    """Restore what `save_engine` wrote, in an engine that has made no step. Return this rank's `extra`.

    Raises:
        StateError: it is missing, damaged, of another number of ranks or ZeRO stage, or does not fit the model.
    """
    path = _rank_file(engine, folder)
    held, weights = read_state(path), read_state(folder / _MODEL)
    try:
        here = {"ranks": engine.dp_world_size, "stage": _stage(engine)}
        there = {name: held[name] for name in here}
        if there != here:
            raise ValueError(f"it was written with {_layout_text(there)}, this job has {_layout_text(here)}")
        with _partitioned(engine):
            _take_weights(engine, weights)
            _take_optimizer(engine, held["optimizer"])
        for name in _COUNTERS:
            setattr(engine, name, int(held["counters"][name]))
        return held["extra"]
    except UserError:
        raise
    except (
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        AssertionError,
    ) as error:
        raise StateError(
            f"does not fit this job ({first_line(error)})",
            where=str(path),
            remedy="resume with the settings that the run began with, or start again in another folder",
        ) from error


@contextmanager
def _partitioned(engine: Any) -> Iterator[None]:
    """In the block, every rank holds its part of each weight (ZeRO 3)."""
    partitions = _stage(engine) == 3
    if partitions:
        engine.optimizer.checkpoint_event_prologue()
    yield
    if partitions:
        engine.optimizer.checkpoint_event_epilogue()


def _weights(engine: Any) -> dict[str, Tensor]:
    """The module's trained weights and its buffers. With ZeRO 3, the weights are in the ranks' parts instead."""
    left = {
        name
        for name, parameter in engine.module.named_parameters(remove_duplicate=False)
        if _stage(engine) == 3 or not parameter.requires_grad
    }
    return {name: value for name, value in engine.module.state_dict().items() if name not in left}


def _take_weights(engine: Any, weights: Mapping[str, Tensor]) -> None:
    expected = _weights(engine)
    if wrong := sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"the model and the checkpoint differ in {wrong[0]}")
    for name, value in expected.items():
        if value.shape != weights[name].shape:
            raise ValueError(f"{name} has shape {list(weights[name].shape)}, not {list(value.shape)}")
    engine.module.load_state_dict(weights, strict=False)


def _take_optimizer(engine: Any, state: Mapping[str, Any]) -> None:
    optimizer, here = engine.optimizer, engine.optimizer.state_dict()
    for name in _FP32_WEIGHTS & here.keys():
        if _shapes(here[name]) != _shapes(state[name]):
            raise ValueError(f"its {name} have other shapes")
    if _stage(engine):
        full = {"loss_scaler": optimizer.loss_scaler, **state}
        # The optimizer expects one entry per rank, but reads only its own.
        optimizer.load_state_dict([full] * engine.dp_world_size, load_from_fp32_weights=True)
    else:
        optimizer.load_state_dict(state)
    # AdamW accepts moments of any shape and would fail at its next step.
    adam = getattr(optimizer, "optimizer", optimizer)
    for parameter, kept in adam.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.numel() not in (1, parameter.numel()):
                raise ValueError(f"its {name} has {value.numel()} values, not {parameter.numel()}")


def _shapes(tree: Any) -> Any:
    return [_shapes(item) for item in tree] if isinstance(tree, list | tuple) else tree.shape


def _stage(engine: Any) -> int:
    return int(engine.zero_optimization_stage())


def _rank_file(engine: Any, folder: Path) -> Path:
    return folder / f"rank-{engine.global_rank}.safetensors"


def _layout_text(kind: Mapping[str, int]) -> str:
    return f"{kind['ranks']} ranks with ZeRO stage {kind['stage']}"
