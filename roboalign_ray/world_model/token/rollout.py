"""The payload of the token world model: codes and log-probabilities, segment by segment.

A segment is the part between two context refreshes. It is a separate training sequence: the model saw nothing else when
it generated the segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Rollout

_ARRAYS = ("context", "given", "actions", "tokens", "logprobs")


@dataclass(frozen=True)
class TokenSegment:
    """G samples of one segment.

    The first segment's context and given frames are shared by the samples (leading axis 1); after a refresh each sample
    has its own (leading axis G).

    Attributes:
        context: codes int32 [1 or G, C].
        given: codes int32 [1 or G, m, D], the frames that the segment starts from; m is 1 except for refreshes that
            keep several frames, and after a branch.
        actions: bins int32 [m - 1 + n, A], or [G, m - 1 + n, A] if the samples have different ones; the first
            m - 1 belong to given frames before the last.
        tokens: codes int32 [G, n, D], the generated frames.
        logprobs: float32 [G, n, D], of the distribution sampled from with temperature 1 and the slot's vocabulary.
        version: weight version that generated it.
        exact: whether a plain forward pass over (context, given, tokens) reproduces `logprobs`: false if the
            policy keeps a cache that such a pass does not have ("sinks").

    Raises:
        ValueError: on construction, if the shapes do not fit together.
    """

    context: np.ndarray
    given: np.ndarray
    actions: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    version: int
    exact: bool = True

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.logprobs.shape != self.tokens.shape:
            raise ValueError(f"tokens {self.tokens.shape} and log-probabilities {self.logprobs.shape} differ")
        samples, frames, size = self.tokens.shape
        if self.context.ndim != 2 or len(self.context) not in (1, samples):
            raise ValueError(f"a context of shape {self.context.shape} for {samples} samples")
        if self.given.ndim != 3 or len(self.given) not in (1, samples) or self.given.shape[2] != size:
            raise ValueError(f"given frames of shape {self.given.shape} for tokens {self.tokens.shape}")
        steps = self.given.shape[1] - 1 + frames
        rows = self.actions.shape[:-2]
        if self.actions.ndim not in (2, 3) or rows not in ((), (samples,)) or self.actions.shape[-2] != steps:
            raise ValueError(f"actions of shape {self.actions.shape} for {steps} steps of {samples} samples")

    @property
    def frames(self) -> int:
        """Number of generated frames n."""
        return self.tokens.shape[1]


@dataclass(frozen=True)
class TokenPayload:
    """The token world model's `protocol.Payload`.

    Attributes:
        segments: in order; their tokens concatenated along time are the T generated frames.

    Raises:
        ValueError: on construction, if there is no segment, or if they differ in their number of samples.
    """

    kind: ClassVar[str] = "token"

    segments: tuple[TokenSegment, ...]

    def __post_init__(self) -> None:
        if len({len(segment.tokens) for segment in self.segments}) != 1:
            raise ValueError("the segments are none, or differ in their number of samples")

    @property
    def samples(self) -> int:
        """Number of samples G."""
        return len(self.segments[0].tokens)

    @property
    def units(self) -> int:
        """Number of generated tokens of all samples."""
        return sum(segment.tokens.size for segment in self.segments)

    @property
    def tokens(self) -> np.ndarray:
        """Codes int32 [G, T, D] of all generated frames."""
        return np.concatenate([segment.tokens for segment in self.segments], axis=1)

    @property
    def logprobs(self) -> np.ndarray:
        """Float32 [G, T, D]."""
        return np.concatenate([segment.logprobs for segment in self.segments], axis=1)

    def check_codes(self, codes: int) -> None:
        """Check that every token is a code of the tokenizer, because a damaged one would also decode to a picture.

        Args:
            codes: size of the codebook.

        Raises:
            ValueError: a token is not a code.
        """
        parts = ((s.context, s.given, s.tokens) for s in self.segments)
        for tokens in (array for part in parts for array in part):
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < codes:
                raise ValueError(f"a token outside the {codes} codes of the tokenizer")

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON types, arrays by name)."""
        header = {"segments": [{"version": s.version, "exact": s.exact} for s in self.segments]}
        arrays = {
            f"segment{number}_{name}": getattr(segment, name)
            for number, segment in enumerate(self.segments)
            for name in _ARRAYS
        }
        return header, arrays

    @classmethod
    def from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TokenPayload:
        """Inverse of `to_arrays`, bit for bit.

        Raises:
            ValueError, LookupError, TypeError: the arrays are not of a token rollout.
        """
        return cls(
            tuple(
                TokenSegment(
                    **{name: arrays[f"segment{number}_{name}"] for name in _ARRAYS},
                    version=int(entry["version"]),
                    exact=bool(entry["exact"]),
                )
                for number, entry in enumerate(header["segments"])
            )
        )


def token_payload(rollout: Rollout) -> TokenPayload:
    """The payload of a token rollout.

    Raises:
        UserError: the rollout is of another kind.
    """
    if not isinstance(rollout.payload, TokenPayload):
        raise UserError(
            f"a rollout of kind '{rollout.payload.kind}' is not made of tokens", where=rollout.prompt_id
        )
    return rollout.payload
