"""The rollout interface: what any world model is asked for, and what it answers.

A group is G samples from one prompt. Its answer is tokens, log-probabilities and the weight versions that made
them, a few kilobytes; pixels are decoded by whoever needs them (`RolloutEngine.decode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roboalign_ray.foundation.failures import Failed


@dataclass(frozen=True)
class Prompt:
    """Where a rollout starts and what it is asked to do.

    Attributes:
        prompt_id: names the window; unique in a job.
        context: uint8 [H, W, 3], the frame the context tokens are made of.
        start: uint8 [H, W, 3], frame 0; becomes dyn_0. May equal `context`.
        actions: bins int64 [T, A]; actions[t] leads from frame t to frame t+1.
        instruction: the sentence, for rewards that read it.
        past: uint8 [m, H, W, 3], known frames right before `start`, oldest first; or None.
        past_actions: bins int64 [m, A]; past_actions[i] leads from past[i] to the frame after it. None without `past`.
    """

    prompt_id: str
    context: np.ndarray
    start: np.ndarray
    actions: np.ndarray
    instruction: str = ""
    past: np.ndarray | None = None
    past_actions: np.ndarray | None = None

    @property
    def horizon(self) -> int:
        """Frames to predict."""
        return len(self.actions)

    @property
    def given(self) -> int:
        """Known frames that become dynamics tokens: the start frame and those of `past`."""
        return 1 if self.past is None else 1 + len(self.past)


@dataclass(frozen=True)
class Segment:
    """What was generated between two context refreshes: a training sequence of its own.

    The first segment's context and start are shared by the group (leading axis 1); after a refresh each sample has
    its own (leading axis G).

    Attributes:
        context: codes int32 [1 or G, C].
        given: codes int32 [1 or G, m, D], the frames that the segment starts from; m is 1 except for refreshes that
            keep several frames.
        actions: bins int32 [m - 1 + n, A]; the first m - 1 belong to given frames before the last.
        tokens: codes int32 [G, n, D], the generated frames.
        logprobs: float32 [G, n, D], of the distribution sampled from with temperature 1 and the slot's vocabulary.
        version: weight version that generated it.
        exact: whether a plain forward pass over (context, given, tokens) reproduces `logprobs`: false where a
            policy keeps a cache that such a pass does not have ("sinks").
    """

    context: np.ndarray
    given: np.ndarray
    actions: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    version: int
    exact: bool = True


@dataclass(frozen=True)
class RolloutGroup:
    """G samples of one prompt.

    Attributes:
        prompt_id, instruction: of the prompt.
        seeds: G sampling seeds; the same seed gives the same tokens whatever else is in the batch.
        segments: in order; their tokens concatenated along time are the T generated frames.
        peak_sequence: tokens of the longest prompt a frame was generated from.
        cache_bytes: most bytes of keys and values held for this group at once.
        seconds_per_frame: float [T], wall time of each frame of the batch that the group was in.
    """

    prompt_id: str
    instruction: str
    seeds: tuple[int, ...]
    segments: tuple[Segment, ...]
    peak_sequence: int
    cache_bytes: int
    seconds_per_frame: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Codes int32 [G, T, D] of all generated frames."""
        return np.concatenate([segment.tokens for segment in self.segments], axis=1)

    @property
    def logprobs(self) -> np.ndarray:
        """Float32 [G, T, D]."""
        return np.concatenate([segment.logprobs for segment in self.segments], axis=1)

    @property
    def versions(self) -> tuple[int, ...]:
        """Weight version per segment."""
        return tuple(segment.version for segment in self.segments)

    def check_codes(self, codes: int) -> None:
        """That every token is a code of the tokenizer: decoding a damaged one gives a picture all the same.

        Args:
            codes: of its codebook.

        Raises:
            ValueError: one is not.
        """
        for tokens in (part for segment in self.segments for part in (segment.context, segment.tokens)):
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < codes:
                raise ValueError(f"{self.prompt_id}: a token outside the {codes} codes of the tokenizer")


@dataclass(frozen=True)
class RolloutReport:
    """Numbers of one batch of rollouts, for whoever asked for it.

    Attributes:
        failed: prompt id to why it has no group.
        tokens: generated.
        seconds: wall time.
        peak_sequence: longest prompt of any frame, tokens.
        cache_bytes: most bytes of keys and values held for one group.
    """

    failed: dict[str, Failed]
    tokens: int
    seconds: float
    peak_sequence: int
    cache_bytes: int


class WorldModel(Protocol):
    """What rollout actors, environments and evaluation ask of a world model, whatever it is made of."""

    version: int

    def rollout(self, prompts: list[Prompt], seeds: list[tuple[int, ...]]) -> list[RolloutGroup]:
        """One group per prompt, `len(seeds[i])` samples each."""
        ...

    def decode(self, group: RolloutGroup) -> np.ndarray:
        """Generated frames uint8 [G, T, H, W, 3]."""
        ...
