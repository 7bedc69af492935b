"""The rollout interface: what any world model is asked for, and what it answers.

A rollout is G samples from one prompt. It holds what was generated in the model's own terms (tokens, latents) and the
weight versions that made it, a few kilobytes; pixels are decoded where they are needed (`WorldModel.decode`).
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
State = Any  # what `begin` gives; only its world model looks into it


@dataclass(frozen=True)
class Prompt:
    """Where a rollout starts and what it is asked to do. V views; frames without an axis of views are of one view.

    Attributes:
        prompt_id: names the window; unique in a job.
        context: uint8 [V, H, W, 3], a frame that the model may look at all the time.
        start: uint8 [V, H, W, 3], frame 0. May equal `context`.
        actions: float [T, A] in the units of the episodes; actions[t] leads from frame t to frame t+1.
        instruction: the sentence, for rewards that read it.
        past: uint8 [m, V, H, W, 3], known frames right before `start`, oldest first; or None.
        past_actions: float [m, A]; past_actions[i] leads from past[i] to the frame after it. None without `past`.

    Raises:
        UserError: on construction, where `past` and `past_actions` do not stand together.
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
        """Frames to predict."""
        return len(self.actions)

    @property
    def given(self) -> int:
        """Known frames that a rollout starts from: the start frame and those of `past`."""
        return 1 if self.past is None else 1 + len(self.past)


@dataclass(frozen=True)
class ModelCard:
    """What a world model is, for those who use it without knowing its kind.

    Attributes:
        kind: as the registry names it.
        views: V, camera views that it predicts together.
        height, width: of a frame, pixels.
        action_dims: A.
        version: of its weights; 0 for those of the folder.
        actions: what its actions mean; None where it was trained before that was written down.
        capabilities: what it offers beside the protocol. "logprobs": its payloads hold log-probabilities. "tokenizer":
            its frames go through a tokenizer.
        clip_frames: frames that it predicts at once; steps and rollouts are whole multiples of it.
        policies: names of the refresh policies that it knows.
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
        """Frames per second that it was trained on, one action each; None where that is not known."""
        return None if self.actions is None else self.actions.rate

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        actions = None if self.actions is None else self.actions.as_json()
        sets = {name: sorted(getattr(self, name)) for name in ("capabilities", "policies")}
        return {**vars(self), **sets, "actions": actions}


class Segment(Protocol):
    """What the parts of a payload tell of themselves: what was generated between two context refreshes."""

    @property
    def frames(self) -> int:
        """Generated frames."""
        ...

    @property
    def version(self) -> int:
        """Weight version that generated them."""
        ...


class Payload(Protocol):
    """What one kind of world model generated, in its own terms. Validates itself on construction."""

    kind: ClassVar[str]

    @property
    def segments(self) -> Sequence[Segment]:
        """In order of time; never empty."""
        ...

    @property
    def samples(self) -> int:
        """G."""
        ...

    @property
    def units(self) -> int:
        """How much was generated for all samples, in the model's own units: tokens, or denoised frames."""
        ...

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON types, arrays by name): what a file holds of it."""
        ...

    @classmethod
    def from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """Inverse of `to_arrays`, bit for bit.

        Raises:
            ValueError, LookupError, TypeError: these are not the arrays of such a payload.
        """
        ...


@dataclass(frozen=True)
class RolloutCost:
    """What a rollout cost.

    Attributes:
        seconds_per_frame: float [T], wall time of each frame of the batch that the rollout was in.
        peak_sequence: tokens of the longest sequence that a frame was generated from.
        cache_bytes: most bytes of intermediate results (keys and values, history) held for this rollout at once.
    """

    seconds_per_frame: np.ndarray
    peak_sequence: int = 0
    cache_bytes: int = 0


@dataclass(frozen=True)
class Rollout:
    """G samples of one prompt.

    Attributes:
        prompt_id, instruction: of the prompt.
        seeds: G sampling seeds; the same seed gives the same sample whatever else is in the batch.
        payload: what was generated, in the terms of the world model.
        cost: time and memory.
        start: frames that were generated before the first one of this rollout: more than 0 behind a branch.

    Raises:
        ValueError: on construction, where seeds and samples differ in number.
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
        """Generated frames T."""
        return sum(segment.frames for segment in self.payload.segments)


@dataclass(frozen=True)
class RolloutReport:
    """Numbers of one batch of rollouts, for whoever asked for it.

    Attributes:
        failed: prompt id to why it has no rollout.
        units: generated, see `Payload.units`.
        seconds: wall time.
        peak_sequence: longest prompt of any frame, tokens.
        cache_bytes: most bytes of keys and values held for one group.
    """

    failed: dict[str, Failed]
    units: int
    seconds: float
    peak_sequence: int
    cache_bytes: int


class Decoder(Protocol):
    """What scorers and annotators ask of a world model: pixels of rollouts that others made. Needs no weights."""

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        ...

    def decode(self, rollout: Rollout) -> np.ndarray:
        """Generated frames uint8 [G, T, V, H, W, 3].

        Raises:
            UserError: a rollout of another kind.
            ValueError: a damaged one, or one of another model.
        """
        ...


class WorldModel(Decoder, Protocol):
    """What rollout actors, environments, planners and evaluation ask of a world model, whatever it is made of.

    A state is an immutable value: stepping or branching leaves it as it is, so that one can go back to it. The same
    seed gives the same frames, bit for bit, whatever else is in the batch and however the frames are cut into steps.
    """

    version: int

    @property
    def work(self) -> int:
        """A number that grows while the model works; may be asked for from another thread."""
        ...

    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> State:
        """The state before the first frame; the prompts' actions are not looked at.

        Args:
            prompts: with equally many given frames.
            seeds: per prompt, equally many; each is a row of the state. Rows of a prompt are adjacent.

        Raises:
            UserError: prompts do not fit the model, or seeds and prompts do not match.
        """
        ...

    def step(self, state: State, actions: np.ndarray) -> State:
        """The state h frames further, context refreshes and new weights where segments end.

        Args:
            actions: float [B, h, A] in the units of the episodes, one per group or one per row. Those per group let
                the model share more between samples.

        Raises:
            UserError: actions do not fit the model or the state.
        """
        ...

    def frames(self, state: State, since: int = 0) -> np.ndarray:
        """Decode generated frames from number `since` on, counted from 0 at `begin`: uint8 [rows, n, V, H, W, 3].

        Raises:
            UserError: there is no such frame.
        """
        ...

    def branch(self, state: State, rows: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> State:
        """Several continuations of chosen rows, whose history they share.

        Args:
            rows: the rows to go on from; each becomes a group.
            seeds: per chosen row, equally many. They hold from the next frame on, as they would in a fresh rollout.

        Raises:
            UserError: a row is not there, or seeds and rows do not match.
        """
        ...

    def rollouts(self, state: State) -> list[Rollout]:
        """What was generated since the last branch, one rollout per group: what training and the journal need.

        Raises:
            UserError: nothing was generated since.
        """
        ...

    def save(self, state: State) -> dict[str, np.ndarray]:
        """The state as arrays of numbers, without weights."""
        ...

    def load(self, arrays: Mapping[str, np.ndarray]) -> State:
        """Inverse of `save`, in any process that holds the same weights.

        Raises:
            UserError: these are no state of this model, or it was begun with other weights.
        """
        ...

    def load_weights(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Take new weights from the next segment on; may be called from another thread while a step runs.

        Raises:
            UserError: they do not fit; the model then keeps what it has.
        """
        ...

    def plan(self, horizon: int) -> tuple[int, ...]:
        """Frames of each segment of a rollout; they sum to the horizon."""
        ...

    def rollout(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> list[Rollout]:
        """One rollout per prompt over its own horizon, `len(seeds[i])` samples each."""
        ...

    def rollout_again(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[tuple[int, ...]],
        weights: Sequence[tuple[int, Mapping[str, Any]]],
    ) -> list[Rollout]:
        """As `rollout`, with version and weights of every segment given: makes again what took new ones on its way.

        Args:
            prompts: of one shape, as many as were one batch.
            seeds: per prompt, equally many.
            weights: per segment of `plan`.

        Raises:
            UserError: as `rollout`; or a rollout has another number of segments.
        """
        ...


def first_view(frames: np.ndarray) -> np.ndarray:
    """Frames [..., V, H, W, 3] of the first view, [..., H, W, 3]: what metrics and judges of one view are shown."""
    return frames[..., 0, :, :, :]
