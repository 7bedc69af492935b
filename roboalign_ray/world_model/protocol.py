"""The interface of world models, and the types of prompts and rollouts.

A rollout is G samples of one prompt. It holds generated data in the model's own form (tokens, latents) and the weight
versions, a few kilobytes in all; pixels are decoded where they are needed (`WorldModel.decode`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, get_args

import numpy as np

from roboalign_ray.config.world_model import RefreshPolicy
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.foundation.failures import Failed, UserError

ALL_POLICIES: frozenset[str] = frozenset(get_args(RefreshPolicy))
State = Any  # result of `begin`; opaque to all but its world model


@dataclass(frozen=True)
class Prompt:
    """Start and actions of a rollout. V views; frames without a view axis have one view.

    Attributes:
        prompt_id: name of the window; unique in a job.
        context: uint8 [V, H, W, 3], a frame that the model sees all the time.
        start: uint8 [V, H, W, 3], frame 0. May equal `context`.
        actions: float [T, A] in the units of the episodes; actions[t] leads from frame t to frame t+1.
        instruction: the instruction, for rewards that use it.
        past: uint8 [m, V, H, W, 3], known frames right before `start`, oldest first; or None.
        past_actions: float [m, A]; past_actions[i] leads from past[i] to the frame after it. None without `past`.

    Raises:
        UserError: on construction, if only one of `past` and `past_actions` is given.
    """

    prompt_id: str
    context: np.ndarray
    start: np.ndarray
    actions: np.ndarray
    instruction: str = ""
    past: np.ndarray | None = None
    past_actions: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.past is None) != (self.past_actions is None):
            raise UserError("past and past_actions go together", where=f"prompt '{self.prompt_id}'")
        for name, dimensions in (("context", 4), ("start", 4), ("past", 5)):
            frames = getattr(self, name)
            if frames is not None and frames.ndim == dimensions - 1:
                object.__setattr__(self, name, np.expand_dims(frames, dimensions - 4))

    @property
    def horizon(self) -> int:
        """Number of frames to predict."""
        return len(self.actions)

    @property
    def given(self) -> int:
        """Number of known frames that a rollout starts from: the start frame and those of `past`."""
        return 1 if self.past is None else 1 + len(self.past)


@dataclass(frozen=True)
class ModelCard:
    """Description of a world model, for callers that do not depend on its kind.

    Attributes:
        kind: name of the kind in the registry.
        views: V, number of camera views that it predicts together.
        height, width: frame size, pixels.
        action_dims: A.
        version: version of its weights; 0 for those of the folder.
        actions: its action card; None for models that were trained before action cards existed.
        capabilities: optional features. "logprobs": its payloads hold log-probabilities. "tokenizer": its frames pass
            through a tokenizer.
        clip_frames: number of frames that it predicts at once; steps and rollouts are whole multiples of it.
        policies: names of the refresh policies that it supports.
    """

    kind: str
    views: int
    height: int
    width: int
    action_dims: int
    version: int = 0
    actions: ActionCard | None = None
    capabilities: frozenset[str] = frozenset()
    clip_frames: int = 1
    policies: frozenset[str] = ALL_POLICIES

    @property
    def fps(self) -> float | None:
        """Frames per second of its training data, with one action each; None if unknown."""
        return None if self.actions is None else self.actions.rate

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        actions = None if self.actions is None else self.actions.as_json()
        sets = {name: sorted(getattr(self, name)) for name in ("capabilities", "policies")}
        return {**vars(self), **sets, "actions": actions}


class Segment(Protocol):
    """A part of a payload: the frames generated between two context refreshes."""

    @property
    def frames(self) -> int:
        """Number of generated frames."""
        ...

    @property
    def version(self) -> int:
        """Weight version that generated them."""
        ...


class Payload(Protocol):
    """Generated data of one kind of world model. Validates itself on construction."""

    kind: ClassVar[str]

    @property
    def segments(self) -> Sequence[Segment]:
        """Segments in order of time; never empty."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples G."""
        ...

    @property
    def units(self) -> int:
        """Amount of generated data of all samples, in the model's own units: tokens, or denoised frames."""
        ...

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON types, arrays by name), for files."""
        ...

    @classmethod
    def from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """Inverse of `to_arrays`, bit for bit.

        Raises:
            ValueError, LookupError, TypeError: the arrays are not of such a payload.
        """
        ...


@dataclass(frozen=True)
class RolloutCost:
    """Time and memory of a rollout.

    Attributes:
        seconds_per_frame: float [T], wall time of each frame of the rollout's batch.
        peak_sequence: length of the longest sequence that a frame was generated from, tokens.
        cache_bytes: maximum of bytes of intermediate results (keys and values, history) held for this rollout at once.
    """

    seconds_per_frame: np.ndarray
    peak_sequence: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True)
class Rollout:
    """G samples of one prompt.

    Attributes:
        prompt_id, instruction: those of the prompt.
        seeds: G sampling seeds; the same seed gives the same sample whatever else is in the batch.
        payload: generated data, in the world model's form.
        cost: time and memory.
        start: number of frames generated before this rollout's first frame; more than 0 after a branch.

    Raises:
        ValueError: on construction, if the numbers of seeds and samples differ.
    """

    prompt_id: str
    instruction: str
    seeds: tuple[int, ...]
    payload: Payload
    cost: RolloutCost
    start: int = 0

    def __post_init__(self) -> None:
        if len(self.seeds) != self.payload.samples:
            raise ValueError(f"{self.prompt_id}: {len(self.seeds)} seeds, {self.payload.samples} samples")

    @property
    def versions(self) -> tuple[int, ...]:
        """Weight version per segment."""
        return tuple(segment.version for segment in self.payload.segments)

    @property
    def horizon(self) -> int:
        """Number of generated frames T."""
        return sum(segment.frames for segment in self.payload.segments)


@dataclass(frozen=True)
class RolloutReport:
    """Numbers of one batch of rollouts.

    Attributes:
        failed: prompt id to the reason why it has no rollout.
        units: amount of generated data, see `Payload.units`.
        seconds: wall time.
        peak_sequence: longest sequence that a frame was generated from, tokens.
        cache_bytes: maximum of bytes of keys and values held for one group.
    """

    failed: dict[str, Failed]
    units: int
    seconds: float
    peak_sequence: int
    cache_bytes: int


class Decoder(Protocol):
    """Decodes rollouts to pixels, for scorers and annotators. Needs no weights."""

    @property
    def card(self) -> ModelCard:
        """Description of the model."""
        ...

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, V, H, W, 3].

        Raises:
            UserError: the rollout is of another kind.
            ValueError: the rollout is damaged, or of another model.
        """
        ...


class WorldModel(Decoder, Protocol):
    """The interface for rollout actors, environments, planners and evaluation, of any kind of world model.

    A state is immutable: stepping or branching does not change it, so callers can return to it. The same seed gives the
    same frames, bit for bit, for any batch and any division into steps.
    """

    version: int

    @property
    def work(self) -> int:
        """A number that grows while the model works. May be read from another thread."""
        ...

    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> State:
        """The state before the first frame; the prompts' actions are ignored.

        Args:
            prompts: prompts with equally many given frames.
            seeds: per prompt, equally many; each seed is a row of the state. Rows of a prompt are adjacent.

        Raises:
            UserError: prompts do not fit the model, or the numbers of seeds and prompts differ.
        """
        ...

    def step(self, state: State, actions: np.ndarray) -> State:
        """The state h frames later. Context refreshes happen, and new weights take effect, where segments end.

        Args:
            actions: float [B, h, A] in the units of the episodes, one per group or one per row. With one per group, the
                model can share more between samples.

        Raises:
            UserError: actions do not fit the model or the state.
        """
        ...

    def frames(self, state: State, since: int = 0) -> np.ndarray:
        """Decode generated frames from number `since` on, counted from 0 at `begin`: uint8 [rows, n, V, H, W, 3].

        Raises:
            UserError: the frame does not exist.
        """
        ...

    def branch(self, state: State, rows: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> State:
        """Several continuations of chosen rows, which share the rows' history.

        Args:
            rows: rows to continue from; each becomes a group.
            seeds: per chosen row, equally many. They apply from the next frame on, as in a fresh rollout.

        Raises:
            UserError: a row does not exist, or the numbers of seeds and rows differ.
        """
        ...

    def rollouts(self, state: State) -> list[Rollout]:
        """Generated data since the last branch, one rollout per group, for training and the journal.

        Raises:
            UserError: nothing was generated since.
        """
        ...

    def save(self, state: State) -> dict[str, np.ndarray]:
        """The state as arrays of numbers, without weights."""
        ...

    def load(self, arrays: Mapping[str, np.ndarray]) -> State:
        """Inverse of `save`, in any process with the same weights.

        Raises:
            UserError: the arrays are not a state of this model, or it was begun with other weights.
        """
        ...

    def load_weights(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Use new weights from the next segment on. May be called from another thread during a step.

        Raises:
            UserError: the weights do not fit; the model then keeps its own.
        """
        ...

    def plan(self, horizon: int) -> tuple[int, ...]:
        """Number of frames of each segment of a rollout; they sum to the horizon."""
        ...

    def rollout(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> list[Rollout]:
        """One rollout per prompt over the prompt's horizon, `len(seeds[i])` samples each."""
        ...

    def rollout_again(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[tuple[int, ...]],
        weights: Sequence[tuple[int, Mapping[str, Any]]],
    ) -> list[Rollout]:
        """As `rollout`, with given version and weights per segment: repeats a rollout that got new weights meanwhile.

        Args:
            prompts: prompts of one shape, all prompts of the original batch.
            seeds: per prompt, equally many.
            weights: version and weights per segment of `plan`.

        Raises:
            UserError: as `rollout`; or a rollout has another number of segments.
        """
        ...


def first_view(frames: np.ndarray) -> np.ndarray:
    """Frames [..., V, H, W, 3] of the first view, [..., H, W, 3], for metrics and judges of one view."""
    return frames[..., 0, :, :, :]
