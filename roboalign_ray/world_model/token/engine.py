"""The rollout engine: token rollouts from a LLaMA world model, fast, exact and reproducible per seed.

    prompts ─► encode ─► prefix, once per group ─► branch into G rows ─► D tokens ─► [last token + action] ─┐
                 ▲                                                      ▲  ▲                                │
                 └──── context refresh at a segment boundary ◄──────────┘  └── next frame, same cache ◄─────┘

Per frame of D tokens the transformer runs D times: D-1 single-token steps, and one chunk that feeds the frame's last
token together with the action. The cache lives across frames and actions; a segment boundary is the only place where
it is rebuilt, and therefore the place where new weights take effect.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.config import RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt, Rollout
from roboalign_ray.world_model.refresh import make_refresh
from roboalign_ray.world_model.token.batch import EngineCounters, Parts, RolloutBatch
from roboalign_ray.world_model.token.codec import FrameCodec, Tokenizer, decode_rollout
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.packed import PackedTransformer
from roboalign_ray.world_model.token.sampling import Sampler

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RolloutEngine:
    """Implements the WorldModel protocol for the token transformer.

    Args:
        model: LlamaForCausalLM; its weights are copied, so it may go on training.
        tokenizer: dual-branch tokenizer, see `codec.Tokenizer`.
        layout: slots and vocabulary of the model.
        rollout_config: refresh, sampling and precision. Horizons come from the prompts.
        version: weight version of `model`.
        device: where the engine runs; default the model's device.
    """

    def __init__(
        self,
        model,
        tokenizer: Tokenizer,
        layout: SequenceLayout,
        rollout_config: RolloutConfig,
        version: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.layout, self.config, self.counters = layout, rollout_config, EngineCounters()
        self._model_config = model.config
        self._device = torch.device(device if device is not None else model.device)
        self._codec = FrameCodec(tokenizer)
        refresh, sampler = make_refresh(rollout_config.refresh, layout), Sampler(rollout_config.sampling)
        self._parts = Parts(layout, self._codec, refresh, sampler, self.counters, self._begin_segment)
        self._lock, self._running = threading.Lock(), False
        self._pending: tuple[PackedTransformer, int] | None = None
        self._packed, self.version = self._pack(model.state_dict()), version

    @property
    def native(self) -> bool:
        """Whether forward passes run in the C library, or on PyTorch's kernels."""
        return self._packed.native is not None

    def load_weights(self, state_dict: Mapping[str, Tensor], version: int) -> None:
        """Take new weights (Hugging Face names to tensors or arrays) from the next segment on.

        May be called from another thread while a rollout runs: the segment under way keeps its weights.

        Raises:
            UserError: a weight is missing or has another shape; the engine then keeps what it has.
        """
        packed = self._pack(state_dict)
        with self._lock:
            self._pending = (packed, version)
            if not self._running:
                self._adopt()

    def rollout(self, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> list[Rollout]:
        """One group per prompt, `len(seeds[i])` samples each; prompts of equal shape run as one batch.

        Raises:
            UserError: a prompt's shape or values do not fit the layout, or seeds and prompts do not match.
        """
        self._check(prompts, seeds)
        batches: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            batches[prompt.horizon, prompt.given, len(seeds[index])].append(index)
        groups: dict[int, Rollout] = {}
        for members in batches.values():
            batch = RolloutBatch(self._parts, [prompts[i] for i in members], [seeds[i] for i in members])
            with self._lock:
                self._running = True
            try:
                groups.update(zip(members, batch.run(), strict=True))
            finally:
                with self._lock:
                    self._running = False
                    self._adopt()
        return [groups[index] for index in range(len(prompts))]

    def rollout_again(
        self,
        prompts: list[Prompt],
        seeds: list[tuple[int, ...]],
        weights: Sequence[tuple[int, Mapping[str, Tensor]]],
    ) -> list[Rollout]:
        """As `rollout`, with the weights of every segment given: makes again what took new ones on its way.

        Args:
            prompts: of one shape, as many as were one batch.
            seeds: per prompt, equally many.
            weights: version and state per segment. The engine's own are left alone.

        Raises:
            UserError: as `rollout`; or a rollout has another number of segments.
        """
        self._check(prompts, seeds)
        segments = len(list(self._parts.refresh.plan(prompts[0].horizon)))
        if segments != len(weights):
            raise UserError(f"{len(weights)} weight versions for {segments} segments", where="rollout")
        packed: dict[int, PackedTransformer] = {}
        for version, state in weights:
            if version not in packed:
                packed[version] = self._pack(state)
        order = iter(weights)

        def begin_segment() -> tuple[PackedTransformer, int]:
            version, _ = next(order)
            return packed[version], version

        return RolloutBatch(replace(self._parts, weights=begin_segment), prompts, seeds).run()

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, H, W, 3], each segment under its own context.

        Raises:
            ValueError: a token is no code of the tokenizer.
        """
        return decode_rollout(rollout, self._codec, self.layout.codes)

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

    def _check(self, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> None:
        if len(prompts) != len(seeds):
            raise UserError(f"{len(seeds)} tuples of seeds for {len(prompts)} prompts", where="rollout")
        for prompt, samples in zip(prompts, seeds, strict=True):
            where = f"prompt '{prompt.prompt_id}'"
            if not samples:
                raise UserError("has no seeds", where=where, remedy="give one seed per sample")
            self._check_actions(where, "actions", prompt.actions)
            for name, frame in (("context", prompt.context), ("start", prompt.start)):
                if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
                    raise UserError(
                        f"{name} is {frame.dtype} {frame.shape}, not uint8 [H, W, 3]", where=where
                    )
            if (prompt.past is None) != (prompt.past_actions is None):
                raise UserError("past and past_actions go together", where=where)
            if prompt.past is not None and prompt.past_actions is not None:
                self._check_past(where, prompt.past, prompt.past_actions, prompt.start)

    def _check_actions(self, where: str, name: str, actions: np.ndarray) -> None:
        width = self.layout.action_tokens
        if actions.ndim != 2 or not len(actions) or actions.shape[1] != width:
            raise UserError(f"{name} have shape {actions.shape}, not [T >= 1, {width}]", where=where)
        if actions.min() < 0 or actions.max() >= self.layout.action_bins:
            raise UserError(f"{name[:-1]} bin outside [0, {self.layout.action_bins})", where=where)

    def _check_past(self, where: str, past: np.ndarray, actions: np.ndarray, start: np.ndarray) -> None:
        self._check_actions(where, "past_actions", actions)
        if past.dtype != np.uint8 or past.shape != (len(actions), *start.shape):
            raise UserError(
                f"past is {past.dtype} {past.shape}, not uint8 {(len(actions), *start.shape)}", where=where
            )
        if self.config.refresh.policy == "sinks" and len(past) >= self.config.refresh.window:
            raise UserError(
                f"{len(past)} past frames do not fit beside the start in a cache of "
                f"{self.config.refresh.window} frames",
                where=where,
                remedy="give fewer, or raise refresh.window",
            )
