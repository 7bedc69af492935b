"""Encodes and decodes frames for the rollout engine: uint8 NumPy outside, the tokenizer's float tensors inside.

Decoded frames are clamped and rounded to the uint8 grid. A refresh therefore re-encodes a possible real frame, and a
rollout that is restarted from the decoded frame gives the same result.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

FRAMES_PER_CALL = 64
_BLOCKS_REMEMBERED = 4


class Tokenizer(Protocol):
    """The part of a tokenizer that the engine uses; frames are float in [0, 1], channels first."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame, pixels."""
        ...

    def encode_context(self, frames_BCHW: Tensor) -> Tensor:
        """Codes int64 [B, C]."""
        ...

    def context_features(self, codes: Tensor) -> Any:
        """Features of context codes [B, C] that the two methods below use."""
        ...

    def encode_dynamics(self, frames_BTCHW: Tensor, context: Any) -> Tensor:
        """Codes int64 [B, T, D], given features of the context."""
        ...

    def decode_dynamics(self, codes: Tensor, context: Any) -> Tensor:
        """Frames [B, T, 3, H, W], given features of the context."""
        ...


class FrameCodec:
    """A tokenizer with uint8 frames, at most `FRAMES_PER_CALL` frames at once, which bounds the memory.

    Features of the last few blocks of contexts are cached: a refresh encodes with the context that the next one decodes
    with.

    Args:
        tokenizer: a trained tokenizer, not trained further; frames are sent to the module's device.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._features: OrderedDict[bytes, Any] = OrderedDict()
        module = tokenizer if isinstance(tokenizer, nn.Module) else nn.Module()
        self._device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def encode_context(self, frames: np.ndarray) -> np.ndarray:
        """Encode frames uint8 [B, H, W, 3] to context codes int64 [B, C]."""
        blocks = [
            self._tokenizer.encode_context(self._to_float(frames[start : start + FRAMES_PER_CALL]))
            for start in range(0, len(frames), FRAMES_PER_CALL)
        ]
        return torch.cat(blocks).cpu().numpy()

    @torch.inference_mode()
    def encode_dynamics(self, frames: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Encode frames uint8 [B, T, H, W, 3] with context codes [B, C] to codes int64 [B, T, D]."""
        step = max(1, FRAMES_PER_CALL // frames.shape[1])
        blocks = [
            self._tokenizer.encode_dynamics(
                self._to_float(frames[start : start + step]), self._context(context[start : start + step])
            )
            for start in range(0, len(frames), step)
        ]
        return torch.cat(blocks).cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Decode codes [B, T, D] with context codes [B, C] to frames uint8 [B, T, H, W, 3]."""
        step = max(1, FRAMES_PER_CALL // codes.shape[1])
        blocks = [
            self._tokenizer.decode_dynamics(
                self._to_codes(codes[start : start + step]), self._context(context[start : start + step])
            )
            .clamp(0, 1)
            .mul(255)
            .round()
            .to(torch.uint8)
            for start in range(0, len(codes), step)
        ]
        return torch.cat(blocks).movedim(-3, -1).contiguous().cpu().numpy()

    def _context(self, codes: np.ndarray) -> Any:
        """Features of a block of context codes [b, C], from the cache or computed."""
        key = codes.astype(np.int64).tobytes()
        features = self._features.pop(key, None)
        if features is None:
            features = self._tokenizer.context_features(self._to_codes(codes))
        self._features[key] = features
        if len(self._features) > _BLOCKS_REMEMBERED:
            self._features.popitem(last=False)
        return features

    def _to_float(self, frames: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)
        return pixels.movedim(-1, -3).float().div(255)

    def _to_codes(self, codes: np.ndarray) -> Tensor:
        return torch.from_numpy(codes.astype(np.int64)).to(self._device)
