"""One clip of all rows of a state: inputs, noise, forward passes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.config import RolloutConfig
from roboalign_ray.world_model.diffusion.conditioning import actions_of, clip_to_bytes, history_of, to_signed
from roboalign_ray.world_model.diffusion.denoising import sample_from
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.network import Denoiser, Seen
from roboalign_ray.world_model.diffusion.noise import normals
from roboalign_ray.world_model.diffusion.rollout import Sampling
from roboalign_ray.world_model.diffusion.state import DiffusionState

_ROWS_PER_PASS = {"cpu": 4}
_ROWS_PER_PASS_ELSEWHERE = 64


class ClipSampler:
    """Denoises clips.

    Args:
        folder: sizes, noise and action scaling.
        sampling: steps and exploration.
        config: precision and rows per pass.
        device: of the networks.
    """

    def __init__(
        self, folder: DenoiserFolder, sampling: Sampling, config: RolloutConfig, device: torch.device
    ) -> None:
        self._sizes, self._scaling, self._scale = folder.denoiser, folder.scaling, folder.noise.residual_scale
        self._sampling, self._device, self._bfloat16 = sampling, device, config.precision == "bfloat16"
        usual = _ROWS_PER_PASS.get(device.type, _ROWS_PER_PASS_ELSEWHERE)
        self.rows = config.diffusion.rows_per_pass or usual
        self._groups = 1 if device.type == "cpu" else self.rows  # of a pass over what groups share
        self.passes = 0

    @property
    def reach(self) -> int:
        """Known frames that a clip depends on, by its history or by the actions between them."""
        return 1 + max(self._sizes.history[-1], self._sizes.past_actions)

    def clip(self, state: DiffusionState, actions: np.ndarray) -> np.ndarray:
        """The next clip: uint8 [rows, n, V, H, W, 3].

        Args:
            state: with a segment under way.
            actions: float32 [rows, n, A] of the clip.
        """
        assert state.weights is not None
        network, rows = state.weights.network, self.rows
        made = []
        for first in range(0, state.rows, rows):
            # The last row stands where rows are missing.
            of_pass = np.minimum(np.arange(first, first + rows), state.rows - 1)
            clip = self._pass(network, state, of_pass, actions[of_pass])
            made.append(clip[: state.rows - first])
        return np.concatenate(made)

    def _pass(
        self, network: Denoiser, state: DiffusionState, rows: np.ndarray, actions: np.ndarray
    ) -> np.ndarray:
        """Clips uint8 [k, n, V, H, W, 3] of k rows."""
        sizes = self._sizes
        shape = (sizes.views, sizes.clip_frames, 3, sizes.height, sizes.width)
        number = state.total - state.origin
        seeds = [state.seeds[row // state.samples][row % state.samples] for row in rows]
        with self._precision():
            seen, level = self._seen(network, state, rows, seeds)
            clip = sample_from(
                network,
                self._tensor(normals(seeds, shape, frame=number)),
                seen,
                self._actions(state, rows, seeds, actions),
                level,
                steps=self._sampling.steps,
                scale=self._scale,
                fresh_noise=self._sampling.fresh_noise,
                fresh=lambda step: self._tensor(normals(seeds, shape, frame=number, step=step)),
            )
        self.passes += self._sampling.steps
        return clip_to_bytes(clip).cpu().numpy()

    def _seen(
        self, network: Denoiser, state: DiffusionState, rows: np.ndarray, seeds: list[int]
    ) -> tuple[Seen, Tensor]:
        """What the network makes of the rows' known frames, and the level of the noise on these [k]."""
        noise = self._sampling.history_noise
        level = torch.full((len(rows),), noise, device=self._device)
        if not state.clips and not noise:
            return self._seen_by_groups(network, state, rows // state.samples), level
        history, reference = self._known(state, rows)
        if noise:
            shape, number = tuple(history.shape[1:]), state.total - state.origin
            drawn = normals(seeds, shape, purpose="history", frame=number)
            history = history + noise * self._tensor(drawn)
        return network.seen(history, reference), level

    def _seen_by_groups(self, network: Denoiser, state: DiffusionState, groups: np.ndarray) -> Seen:
        """The same of rows whose groups [k] have one history each: made once per group, in passes of equal size."""
        some, place = np.unique(groups, return_inverse=True)
        size, parts = self._groups, []
        for first in range(0, len(some), size):
            of_pass = some[np.minimum(np.arange(first, first + size), len(some) - 1)]
            parts.append(network.seen(*self._known(state, of_pass * state.samples)))
        return Seen.joined(parts).taken(self._tensor(place), self._sizes.views)

    def _known(self, state: DiffusionState, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """History and reference of rows, as `Inputs` has them."""
        frames = self._tensor(state.frames(rows, self._oldest(state)))
        return history_of(frames, self._sizes), to_signed(self._tensor(state.references(rows)))

    def _actions(
        self, state: DiffusionState, rows: np.ndarray, seeds: list[int], actions: np.ndarray
    ) -> Tensor:
        """Scaled actions [k, past + n, A] as the network sees them, with each sample's offset."""
        oldest = self._oldest(state)
        whole = np.concatenate([state.actions[rows, oldest:], actions], axis=1)
        scaled = actions_of(self._tensor(whole), state.total - oldest, self._sizes, self._scaling)
        if not self._sampling.action_noise:
            return scaled
        offset = normals(seeds, (1, actions.shape[2]), purpose="actions")
        return scaled + self._sampling.action_noise * self._tensor(offset)

    def _oldest(self, state: DiffusionState) -> int:
        """Position of the oldest frame that the next clip can depend on."""
        return max(state.segments[-1].oldest, state.total - self.reach)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._bfloat16 else nullcontext()
