"""The rollout engine of the diffusion world model: clips by denoising, reproducible per seed whatever the batch.

    known frames ─► seen: once per group where its samples share them, once for all denoising steps ─┐
    seeds ─► noise [rows, V, n, 3, H, W] ────────────────────────────────────────────────────────────┴─► passes of
    exactly `rows_per_pass` rows ─► clip, rounded to uint8 ─► history of the next clip

A row's result does not depend on the other rows of its pass, but the last bit of a matrix product may depend on how
many there are. So every pass has the same number of rows, and those that are missing are filled up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from roboalign_ray.config import RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.adapters import whole_weights
from roboalign_ray.world_model.diffusion.decoder import DiffusionDecoder, diffusion_card
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.network import Denoiser
from roboalign_ray.world_model.diffusion.rollout import Sampling
from roboalign_ray.world_model.diffusion.state import DiffusionState, SegmentStart, Weights
from roboalign_ray.world_model.diffusion.state_files import state_arrays, state_from_arrays
from roboalign_ray.world_model.diffusion.stepping import ClipSampler
from roboalign_ray.world_model.prompt_checks import check_prompts, given_frames
from roboalign_ray.world_model.protocol import ModelCard, Prompt, Rollout
from roboalign_ray.world_model.refresh import RefreshPlan, check_clips, check_refresh
from roboalign_ray.world_model.seeds import check_seeds
from roboalign_ray.world_model.whole_rollouts import WholeRollouts, check_weights_of_segments, whole_actions


class DiffusionEngine(WholeRollouts[DiffusionState]):
    """Implements the WorldModel protocol for a denoiser.

    Args:
        network: its weights are copied, so it may go on training.
        folder: what the network's folder says of it.
        rollout_config: refresh, sampling and precision. Horizons come from the prompts.
        version: weight version of `network`.
        device: where the engine runs; default the network's device.

    Raises:
        UserError: the model cannot do what `rollout_config` asks for.
    """

    def __init__(
        self,
        network: Denoiser,
        folder: DenoiserFolder,
        rollout_config: RolloutConfig,
        version: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self._decoder = DiffusionDecoder(diffusion_card(folder))
        check_refresh(rollout_config.refresh, self._decoder.card)
        self.config, self.folder = rollout_config, folder
        self._refresh = RefreshPlan.of(rollout_config.refresh)
        self._device = torch.device(device if device is not None else next(network.parameters()).device)
        asked = rollout_config.diffusion
        self.sampling = Sampling(
            asked.steps or folder.noise.steps, asked.action_noise, asked.history_noise, asked.fresh_noise
        )
        self._sampler = ClipSampler(folder, self.sampling, rollout_config, self._device)
        self._lock, self._running = threading.Lock(), False
        copy = deepcopy(network).to(self._device).eval()
        self._base = dict(copy.state_dict())
        self._held, self.version = Weights(copy, version), version
        self._pending: Weights | None = None

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return replace(self._decoder.card, version=self.version)

    @property
    def rows_per_pass(self) -> int:
        """Rows that one forward pass denoises."""
        return self._sampler.rows

    @property
    def work(self) -> int:
        """Forward passes so far."""
        return self._sampler.passes

    def load_weights(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Take new weights (names as in the folder, to tensors or arrays) from the next segment on.

        Weights that are not among them are those that the engine was made with, changed by low-rank adapters where
        these are given (`adapters.whole_weights`). May be called from another thread while a rollout runs: the segment
        under way keeps its weights.

        Raises:
            UserError: there is none, or one does not fit; the engine then keeps what it has.
        """
        weights = self._weights(state_dict, version)
        with self._lock:
            self._pending = weights
            if not self._running:
                self._adopt()

    def plan(self, horizon: int) -> tuple[int, ...]:
        """Frames of each segment of a rollout; they sum to the horizon."""
        return self._refresh.segments(horizon)

    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> DiffusionState:
        """The state before the first frame; see `WorldModel.begin`."""
        card = self._decoder.card
        check_prompts(prompts, seeds, card, self.config.refresh)
        check_seeds(seed for own in seeds for seed in own)
        began, samples = time.perf_counter(), len(seeds[0])
        past = [prompt.past_actions for prompt in prompts if prompt.past_actions is not None]
        empty = np.zeros((len(prompts), 0, card.action_dims))
        actions = np.stack(past) if past else empty
        return DiffusionState(
            prompts=tuple((prompt.prompt_id, prompt.instruction) for prompt in prompts),
            seeds=tuple(tuple(own) for own in seeds),
            given=prompts[0].given,
            context=np.stack([prompt.context for prompt in prompts]),
            known=np.stack([given_frames(prompt) for prompt in prompts]),
            clips=(),
            actions=np.repeat(_float32(actions), samples, axis=0),
            own_actions=False,
            begin_seconds=time.perf_counter() - began,
        )

    def step(self, state: DiffusionState, actions: np.ndarray) -> DiffusionState:
        """The state `h` frames further; see `WorldModel.step`.

        Raises:
            UserError: actions do not fit the model or the state, or `h` is no whole number of clips.
        """
        return self._step(state, actions, self._begin_segment)

    def frames(self, state: DiffusionState, since: int = 0) -> np.ndarray:
        """Generated frames from number `since` on, counted from 0: uint8 [rows, n, V, H, W, 3]."""
        return self._decoder.frames(state, since)

    def branch(
        self, state: DiffusionState, rows: Sequence[int], seeds: Sequence[tuple[int, ...]]
    ) -> DiffusionState:
        """New groups behind chosen rows; see `WorldModel.branch`. A row's frames are stored once per new group."""
        check_seeds(seed for own in seeds for seed in own)
        return state.branch(rows, seeds)

    def rollouts(self, state: DiffusionState) -> list[Rollout]:
        """What was generated since the last branch, one rollout per group.

        Raises:
            UserError: nothing was.
        """
        return state.rollouts(self._sampler.reach, self.sampling)

    def save(self, state: DiffusionState) -> dict[str, np.ndarray]:
        """The state as arrays of numbers: frames and actions; no weights."""
        return state_arrays(state)

    def load(self, arrays: Mapping[str, np.ndarray]) -> DiffusionState:
        """Inverse of `save`, in any process that holds the same weights.

        Raises:
            UserError: these are no state of this model, or its segment under way was begun with other weights.
        """
        with self._lock:
            held = self._held
        return state_from_arrays(arrays, self._decoder.card, self._refresh, held)

    def rollout_again(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[tuple[int, ...]],
        weights: Sequence[tuple[int, Mapping[str, Any]]],
    ) -> list[Rollout]:
        """As `rollout`, with version and weights of every segment given; see `WorldModel.rollout_again`.

        The engine's own weights are left alone.
        """
        check_weights_of_segments(weights, self.plan(prompts[0].horizon))
        made = {version: self._weights(values, version) for version, values in dict(weights).items()}
        order = iter(weights)
        state = self.begin(prompts, seeds)
        return self.rollouts(self._step(state, whole_actions(prompts), lambda: made[next(order)[0]]))

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, V, H, W, 3]; see `DiffusionDecoder`."""
        return self._decoder.decode(rollout)

    @torch.inference_mode()
    def _step(
        self, state: DiffusionState, actions: np.ndarray, next_weights: Callable[[], Weights]
    ) -> DiffusionState:
        given, together = self._checked(state, actions), len(actions) == len(state.seeds)
        state = replace(state, own_actions=state.own_actions or not together)
        length = self._decoder.card.clip_frames
        with self._lock:
            self._running = True
        try:
            for first in range(0, given.shape[1], length):
                began = time.perf_counter()
                state = self._in_segment(state, next_weights)
                clip = self._sampler.clip(state, given[:, first : first + length])
                lead = 0.0 if state.seconds else state.begin_seconds
                seconds = (time.perf_counter() - began) / length
                state = replace(
                    state,
                    clips=(*state.clips, clip),
                    actions=np.concatenate([state.actions, given[:, first : first + length]], axis=1),
                    seconds=(*state.seconds, seconds + lead, *[seconds] * (length - 1)),
                )
            return state
        finally:
            with self._lock:
                self._running = False
                self._adopt()

    def _in_segment(self, state: DiffusionState, next_weights: Callable[[], Weights]) -> DiffusionState:
        """The state with a segment under way: the one that it has, or a new one after a context refresh."""
        before = state.segments[-1] if state.segments else None
        if before is not None and self._refresh.left(state.total - before.first) != 0:
            return state
        weights, total = next_weights(), state.total
        oldest, reference = 0, None
        if before is not None:
            oldest = max(before.oldest, total - self._refresh.recent)
            reference = None if self._refresh.keeps_context else total - 1
        start = SegmentStart(total, oldest, reference, weights.version)
        return replace(state, segments=(*state.segments, start), weights=weights)

    def _checked(self, state: DiffusionState, actions: np.ndarray) -> np.ndarray:
        """Actions float32 [rows, h, A] of those given per group or per row."""
        actions, width = np.asarray(actions), self._decoder.card.action_dims
        if actions.ndim != 3 or not actions.shape[1] or actions.shape[2] != width:
            raise UserError(f"actions have shape {actions.shape}, not [B, h >= 1, {width}]", where="step")
        if len(actions) not in (len(state.seeds), state.rows):
            raise UserError(
                f"actions for {len(actions)} rows; the state has {len(state.seeds)} groups of {state.samples}",
                where="step",
            )
        check_clips(actions.shape[1], self._decoder.card, "step")
        return np.repeat(_float32(actions), state.rows // len(actions), axis=0)

    def _begin_segment(self) -> Weights:
        with self._lock:
            self._adopt()
            return self._held

    def _adopt(self) -> None:
        if self._pending is not None:
            self._held, self.version = self._pending, self._pending.version
            self._pending = None

    def _weights(self, state_dict: Mapping[str, Any], version: int) -> Weights:
        if not state_dict:
            raise UserError("there are none", where="weights")
        network = deepcopy(self._held.network)
        network.load_state_dict(whole_weights(self._base, state_dict))
        return Weights(network, version)


def _float32(actions: np.ndarray) -> np.ndarray:
    if not np.isfinite(actions).all():
        raise UserError("an action is not finite", where="step")
    return actions.astype(np.float32)
