"""Checks that prompts fit a world model: shapes, views and seeds, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.config import RefreshConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import ModelCard, Prompt


def check_prompts(
    prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]], card: ModelCard, refresh: RefreshConfig
) -> None:
    """Check prompts that begin as one batch.

    Raises:
        UserError: a prompt does not fit; the message gives the reason.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise UserError(f"{len(seeds)} tuples of seeds for {len(prompts)} prompts", where="rollout")
    for prompt, samples in zip(prompts, seeds, strict=True):
        where = f"prompt '{prompt.prompt_id}'"
        if not samples:
            raise UserError("has no seeds", where=where, remedy="give one seed per sample")
        for name, frame in (("context", prompt.context), ("start", prompt.start)):
            _check_frame(where, name, frame, card)
        if prompt.past is not None and prompt.past_actions is not None:
            _check_past(where, prompt.past, prompt.past_actions, prompt.start, card.action_dims)
            _check_room(where, len(prompt.past), refresh)
    shapes = {(prompt.given, len(samples)) for prompt, samples in zip(prompts, seeds, strict=True)}
    if len(shapes) > 1:
        raise UserError("prompts of one batch want equally many given frames and seeds", where="begin")


def check_branch(rows: Sequence[int], seeds: Sequence[tuple[int, ...]], count: int) -> None:
    """Check rows and seeds of a branch; `count` is the number of rows of the state.

    Raises:
        UserError: a row is not there, or seeds and rows do not match.
    """
    if not len(rows) or len(rows) != len(seeds) or len({len(s) for s in seeds}) != 1 or not seeds[0]:
        raise UserError(f"{len(seeds)} tuples of seeds for {len(rows)} rows", where="branch")
    if min(rows) < 0 or max(rows) >= count:
        raise UserError(f"row {max(rows, key=abs)} is not one of the {count}", where="branch")


def _check_frame(where: str, name: str, frame: np.ndarray, card: ModelCard) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 4 or frame.shape[-1] != 3:
        raise UserError(f"{name} is {frame.dtype} {frame.shape}, not uint8 [V, H, W, 3]", where=where)
    if len(frame) != card.views:
        raise UserError(f"{name} has {len(frame)} views, the world model {card.views}", where=where)
    if frame.shape[1:3] != (card.height, card.width):
        size = f"{card.height}x{card.width}"
        raise UserError(f"{name} has {frame.shape[1]}x{frame.shape[2]} pixels, not {size}", where=where)


def _check_past(where: str, past: np.ndarray, actions: np.ndarray, start: np.ndarray, width: int) -> None:
    if actions.ndim != 2 or not len(actions) or actions.shape[1] != width:
        raise UserError(f"past_actions have shape {actions.shape}, not [m >= 1, {width}]", where=where)
    if past.dtype != np.uint8 or past.shape != (len(actions), *start.shape):
        raise UserError(
            f"past is {past.dtype} {past.shape}, not uint8 {(len(actions), *start.shape)}", where=where
        )


def _check_room(where: str, past: int, refresh: RefreshConfig) -> None:
    if refresh.policy == "sinks" and past >= refresh.window:
        raise UserError(
            f"{past} past frames do not fit beside the start in a cache of {refresh.window} frames",
            where=where,
            remedy="give fewer, or raise refresh.window",
        )


def given_frames(prompt: Prompt) -> np.ndarray:
    """Frames that the prompt's rollout starts from, the start frame last: uint8 [m, V, H, W, 3]."""
    start = prompt.start[None]
    return start if prompt.past is None else np.concatenate([prompt.past, start])
