"""The rollout engine: token rollouts from a LLaMA world model, fast, exact and reproducible per seed.

    prompts ─► encode ─► prefix, once per group ─► branch into G rows ─► D tokens ─► [last token + action] ─┐
                 ▲                                                      ▲  ▲                                │
                 └──── context refresh at a segment boundary ◄──────────┘  └── next frame, same cache ◄─────┘

Per frame of D tokens the transformer runs D times: D-1 single-token steps, and one chunk that feeds the frame's last
token together with the action. The cache is kept across frames and actions; it is rebuilt only at a segment boundary,
where new weights take effect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.config import RolloutConfig
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.prompt_checks import check_prompts, given_frames
from roboalign_ray.world_model.protocol import ModelCard, Prompt, Rollout
from roboalign_ray.world_model.seeds import check_seeds
from roboalign_ray.world_model.token.codec import Tokenizer
from roboalign_ray.world_model.token.decoder import TokenDecoder
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.packed import PackedTransformer
from roboalign_ray.world_model.token.refresh_starts import SegmentStart, make_refresh
from roboalign_ray.world_model.token.sampling import Sampler
from roboalign_ray.world_model.token.state import SharedPrefix, TokenState
from roboalign_ray.world_model.token.state_files import state_arrays, state_from_arrays
from roboalign_ray.world_model.token.stepping import EngineCounters, Parts, Step
from roboalign_ray.world_model.whole_rollouts import WholeRollouts, check_weights_of_segments, whole_actions

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RolloutEngine(WholeRollouts[TokenState]):
    """Implements the WorldModel protocol for the token transformer.

    Args:
        model: LlamaForCausalLM; its weights are copied, so it may be trained further.
        tokenizer: dual-branch tokenizer, see `codec.Tokenizer`.
        layout: slots and vocabulary of the model.
        binner: physical actions to the bins that the model was trained on.
        rollout_config: refresh, sampling and precision. Horizons come from the prompts.
        version: weight version of `model`.
        device: where the engine runs; default the model's device.
        actions: the model's action card, if known.
    """

    def __init__(
        self,
        model,
        tokenizer: Tokenizer,
        layout: SequenceLayout,
        binner: ActionBinner,
        rollout_config: RolloutConfig,
        version: int = 0,
        device: torch.device | str | None = None,
        actions: ActionCard | None = None,
    ) -> None:
        self.layout, self.config, self.counters = layout, rollout_config, EngineCounters()
        self._binner, self._decoder = binner, TokenDecoder(tokenizer, layout, actions)
        self._model_config = model.config
        self._device = torch.device(device if device is not None else model.device)
        refresh, sampler = make_refresh(rollout_config.refresh, layout), Sampler(rollout_config.sampling)
        self._parts = Parts(layout, self._decoder.codec, refresh, sampler, self.counters, self._begin_segment)
        self._lock, self._running = threading.Lock(), False
        self._pending: tuple[PackedTransformer, int] | None = None
        self._packed, self.version = self._pack(model.state_dict()), version

    @property
    def card(self) -> ModelCard:
        """Description of the model."""
        return replace(self._decoder.card, version=self.version)

    @property
    def work(self) -> int:
        """Number of passes and tokens so far."""
        return sum(vars(self.counters).values())

    @property
    def native(self) -> bool:
        """Whether forward passes run in the C library; if not, they use PyTorch's kernels."""
        return self._packed.native is not None

    def load_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Use new weights (Hugging Face names to tensors or arrays) from the next segment on.

        May be called from another thread during a rollout: the current segment keeps its weights.

        Raises:
            UserError: a weight is missing or has another shape; the engine then keeps its own.
        """
        packed = self._pack(state_dict)
        with self._lock:
            self._pending = (packed, version)
            if not self._running:
                self._adopt()

    def plan(self, horizon: int) -> tuple[int, ...]:
        """Number of frames of each segment of a rollout; they sum to the horizon."""
        return self._parts.refresh.plan(horizon)

    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> TokenState:
        """The state before the first frame; see `WorldModel.begin`. Keys and values are computed by the first step."""
        check_prompts(prompts, seeds, self._decoder.card, self.config.refresh)
        began, samples = time.perf_counter(), len(seeds[0])
        check_seeds(seed for own in seeds for seed in own)
        codec, layout = self._decoder.codec, self.layout
        context = codec.encode_context(np.stack([prompt.context[0] for prompt in prompts]))
        given = codec.encode_dynamics(np.stack([given_frames(prompt)[:, 0] for prompt in prompts]), context)
        past = [prompt.past_actions for prompt in prompts if prompt.past_actions is not None]
        empty = np.zeros((len(prompts), 0, layout.action_tokens), np.int64)
        actions = self._binner.to_bins(np.stack(past)) if past else empty
        return TokenState(
            prompts=tuple((prompt.prompt_id, prompt.instruction) for prompt in prompts),
            seeds=tuple(tuple(own) for own in seeds),
            past=actions.shape[1],
            actions=np.repeat(actions, samples, axis=0),
            own_actions=False,
            first=SegmentStart(context, given, True, True),
            prefix=SharedPrefix(layout.assemble(context, given, actions)),
            begin_seconds=time.perf_counter() - began,
        )

    def step(self, state: TokenState, actions: np.ndarray) -> TokenState:
        """The state `h` frames later; see `WorldModel.step`.

        With actions per group, [groups, h, A], the samples of a group also share the first action's keys and values;
        with actions per row these are computed per row, which may change the last bit of log-probabilities.

        The first step from a state copies no keys and values. Every further one copies each row's own tokens of the
        current segment, and so does a step of policy "sinks" that moves tokens.
        """
        bins, together = self._bins(state, actions)
        with self._lock:
            self._running = True
        try:
            return Step(self._parts, state, bins, together).run()
        finally:
            with self._lock:
                self._running = False
                self._adopt()

    def frames(self, state: TokenState, since: int = 0) -> np.ndarray:
        """Decode generated frames from number `since` on, counted from 0: uint8 [rows, n, 1, H, W, 3]."""
        return self._decoder.frames(state, since)

    @torch.inference_mode()
    def branch(self, state: TokenState, rows: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> TokenState:
        """New groups that continue chosen rows; see `WorldModel.branch`.

        A row's keys and values of the current segment are stored once per new group, for any number of samples; policy
        "sinks" stores them once per sample.
        """
        check_seeds(seed for own in seeds for seed in own)
        return state.branch(rows, seeds, fold=self._parts.refresh.cache_frames is None)

    def rollouts(self, state: TokenState) -> list[Rollout]:
        """Generated data since the last branch, one rollout per group.

        Raises:
            UserError: nothing was generated.
        """
        return state.rollouts()

    def save(self, state: TokenState) -> dict[str, np.ndarray]:
        """The state as arrays of numbers: codes, and keys and values of the current segment; no weights."""
        return state_arrays(state)

    @torch.inference_mode()
    def load(self, arrays: Mapping[str, np.ndarray]) -> TokenState:
        """Inverse of `save`, in any process with the same weights.

        Raises:
            UserError: the arrays are not a state of this model, or its current segment was begun with other weights.
        """
        return state_from_arrays(arrays, self.layout, self._packed, self.version)

    def rollout_again(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[tuple[int, ...]],
        weights: Sequence[tuple[int, Mapping[str, Tensor]]],
    ) -> list[Rollout]:
        """As `rollout`, with the weights of every segment given; see `WorldModel.rollout_again`.

        The engine's own weights do not change.
        """
        check_weights_of_segments(weights, self.plan(prompts[0].horizon))
        packed: dict[int, PackedTransformer] = {}
        for version, values in weights:
            if version not in packed:
                packed[version] = self._pack(values)
        order = iter(weights)

        def begin_segment() -> tuple[PackedTransformer, int]:
            version, _ = next(order)
            return packed[version], version

        state = self.begin(prompts, seeds)
        bins, together = self._bins(state, whole_actions(prompts))
        return Step(replace(self._parts, weights=begin_segment), state, bins, together).run().rollouts()

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, 1, H, W, 3], each segment with its own context; see `TokenDecoder`."""
        return self._decoder.decode(rollout)

    def _bins(self, state: TokenState, actions: np.ndarray) -> tuple[np.ndarray, bool]:
        """Bins [rows, h, A] of physical actions [groups or rows, h, A], and whether they were given per group."""
        actions, width = np.asarray(actions), self.layout.action_tokens
        if actions.ndim != 3 or not actions.shape[1] or actions.shape[2] != width:
            raise UserError(f"actions have shape {actions.shape}, not [B, h >= 1, {width}]", where="step")
        if len(actions) not in (len(state.seeds), state.rows):
            raise UserError(
                f"actions for {len(actions)} rows; the state has {len(state.seeds)} groups of {state.samples}",
                where="step",
            )
        bins, together = self._binner.to_bins(actions), len(actions) == len(state.seeds)
        return np.repeat(bins, state.rows // len(bins), axis=0), together

    def _begin_segment(self) -> tuple[PackedTransformer, int]:
        with self._lock:
            self._adopt()
            return self._packed, self.version

    def _adopt(self) -> None:
        if self._pending is not None:
            self._packed, self.version = self._pending
            self._pending = None

    @torch.inference_mode()
    def _pack(self, state_dict: Mapping[str, Tensor]) -> PackedTransformer:
        dtype = _DTYPES[self.config.precision]
        return PackedTransformer(
            state_dict, self._model_config, self.layout, dtype=dtype, device=self._device
        )
