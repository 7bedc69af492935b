"""What an environment is made of, and the keyword arguments that `gymnasium.make` and `make_vec` take for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces

from roboalign_ray.config import RolloutConfig
from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.foundation.storage.readers import validated
from roboalign_ray.planning.pictures import Picture, read_picture
from roboalign_ray.planning.reward_option import RewardOption, open_scorer
from roboalign_ray.planning.scoring import ClipScorer
from roboalign_ray.planning.starts import SavedStart, Starts, picture_start, store_starts
from roboalign_ray.planning.state_files import ModelIdentity, read_states
from roboalign_ray.rewards.student_judge import JudgedReward
from roboalign_ray.world_model.protocol import ModelCard, WorldModel
from roboalign_ray.world_model.registry import folder_of, open_world_model

Observation = Literal["rgb", "dict"]
VIEWS, INSTRUCTION = "views", "instruction"


@dataclass(frozen=True)
class WorldModelOptions:
    """How an environment is made; every field is a keyword argument of `gymnasium.make` and `make_vec`.

    Attributes:
        world_model: folder, "shipped", or an open world model.
        tokenizer: its folder, where the world model's folder does not say it.
        rollout: refresh policy, sampling and precision, as in a profile: {"refresh": {"policy": "swr", "window": 6}}.
        device: where model and reward run; None takes a GPU where there is one.
        observation: "rgb", the first view, uint8 [H, W, 3]; or "dict": `views`, uint8 [V, H, W, 3], and `instruction`.
        horizon: steps until an episode is truncated.
        store: episode store that start states come from; "shipped" is the one inside the package.
        split: of the store: "held_out" or "train". An episode begins with the first frame of one, drawn by the seed.
        windows: start states by name, "episode@frame", one or several, in place of the split.
        image: picture that every episode begins with, in place of a store: a file, or uint8 of the model's size.
        state: saved state that every episode goes on from, in place of a store: an npz file, or its arrays.
        instruction: the sentence; None takes the episode's own.
        reward: see `reward_option.open_scorer`; None gives 0.
        goal: picture that fidelity rewards compare with.
        judge: folder of the student that the reward "judged" asks.
        success: least score of a clip that ends an episode as terminated; None never does.
        action_bounds: (low, high), float [A] each, where the world model's action card states none.
    """

    world_model: str | Path | WorldModel = "shipped"
    tokenizer: str | Path | None = None
    rollout: RolloutConfig | Mapping[str, Any] | None = None
    device: str | None = None
    observation: Observation = "rgb"
    horizon: int = 30
    store: str | Path = "shipped"
    split: str = "held_out"
    windows: str | Sequence[str] | None = None
    image: Picture | None = None
    state: str | Path | Mapping[str, np.ndarray] | None = None
    instruction: str | None = None
    reward: RewardOption | None = None
    goal: Picture | None = None
    judge: str | Path = "shipped"
    success: float | None = None
    action_bounds: tuple[Sequence[float], Sequence[float]] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> WorldModelOptions:
        """From keyword arguments, checked as far as that needs no file.

        Raises:
            UserError: an unknown option (the nearest one is named), or a value that cannot be used.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise UserError(
                    f"unknown option '{name}'", where="environment", remedy=nearest_key(name, known)
                )
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        if self.observation not in get_args(Observation):
            raise UserError(f"is {self.observation!r}", where="observation", remedy="rgb or dict")
        if (
            isinstance(self.horizon, bool)
            or not isinstance(self.horizon, int | np.integer)
            or self.horizon < 1
        ):
            raise UserError(
                f"is {self.horizon!r}", where="horizon", remedy="give a number of steps, at least 1"
            )
        if self.image is not None and self.state is not None:
            raise UserError("an image and a state cannot both be where episodes begin", where="image")
        if self.windows is not None and (self.image is not None or self.state is not None):
            raise UserError("names windows of a store; episodes begin elsewhere", where="windows")
        if self.state is not None and self.instruction is not None:
            raise UserError("a saved state has its own", where="instruction")
        if self.success is not None and self.reward is None:
            raise UserError("is a bound on the reward's score; there is none", where="success")


@dataclass(frozen=True)
class Setup:
    """What the sub-environments of an environment share.

    Attributes:
        options: that it was made with.
        model: the world model.
        starts: begins episodes.
        scorer: of the reward, or None.
        low, high: float32 [A], bounds of actions.
        identity: of the model, for saved states.
    """

    options: WorldModelOptions
    model: WorldModel
    starts: Starts
    scorer: ClipScorer | None
    low: np.ndarray
    high: np.ndarray

    @cached_property
    def identity(self) -> ModelIdentity:
        """Computed when a state is first saved or loaded: large weights take a while to read."""
        return model_identity(self.options, self.model)

    @property
    def card(self) -> ModelCard:
        """Of the world model."""
        return self.model.card

    @property
    def keeps_frames(self) -> bool:
        """Whether the reward reads more than the newest frame."""
        return self.scorer is not None and not self.scorer.frame_by_frame

    @property
    def fps(self) -> float:
        """Frames per second of videos; 5 where the model does not know."""
        return self.card.fps or 5.0

    def action_space(self) -> spaces.Box:
        """Physical units, bounded."""
        return spaces.Box(self.low, self.high, dtype=np.float32)

    def observation_space(self) -> spaces.Space:
        """See `WorldModelOptions.observation`."""
        card = self.card
        if self.options.observation == "rgb":
            return spaces.Box(0, 255, (card.height, card.width, 3), np.uint8)
        said = self.starts.instructions
        letters = frozenset("".join(said)) or frozenset(" ")
        longest = max(1, *(len(text) for text in said))
        return spaces.Dict(
            {
                VIEWS: spaces.Box(0, 255, (card.views, card.height, card.width, 3), np.uint8),
                INSTRUCTION: spaces.Text(longest, min_length=0, charset=letters),
            }
        )


def open_setup(options: WorldModelOptions) -> Setup:
    """Open what the options name: bounds and pictures are checked before the reward's networks are read.

    Raises:
        UserError: says what cannot be used.
    """
    model = _model(options)
    card = model.card
    low, high = _bounds(options, card)
    goal = None if options.goal is None else read_picture(options.goal, card, "goal")
    starts = _starts(options, model)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    scorer = open_scorer(options.reward, card, goal=goal, judge=options.judge, device=device)
    judged = scorer is not None and isinstance(scorer.reward, JudgedReward)
    if judged and not all(text.strip() for text in starts.instructions):
        raise UserError("the judge needs a sentence", where="instruction", remedy="give instruction='…'")
    return Setup(options, model, starts, scorer, low, high)


def model_identity(options: WorldModelOptions, model: WorldModel) -> ModelIdentity:
    """Which model this is."""
    named = options.world_model
    folder = folder_of(named) if isinstance(named, str | Path) else None
    return ModelIdentity.of(model.card, folder)


def _model(options: WorldModelOptions) -> WorldModel:
    named = options.world_model
    if isinstance(named, str | Path):
        rollout = options.rollout
        if rollout is not None and not isinstance(rollout, RolloutConfig):
            rollout = validated(dict(rollout), RolloutConfig, "rollout settings", where="rollout")
        return open_world_model(named, rollout, tokenizer=options.tokenizer, device=options.device)
    if not callable(getattr(named, "begin", None)):
        raise UserError(f"is of type {type(named).__name__}", where="world_model", remedy="give a folder")
    if options.rollout is not None:
        raise UserError("the world model is open already", where="rollout", remedy="open it with them")
    return named


def _starts(options: WorldModelOptions, model: WorldModel) -> Starts:
    if options.state is not None:
        saved = read_states(options.state, model, model_identity(options, model))
        return SavedStart(saved, model)
    if options.image is not None:
        return picture_start(model.card, options.image, options.instruction)
    return store_starts(
        model.card,
        store=options.store,
        split=options.split,
        windows=options.windows,
        instruction=options.instruction,
    )


def _bounds(options: WorldModelOptions, card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    """Float32 [A] each: as given, else those of the action card, else what was observed in training."""
    where, dims = "action_bounds", card.action_dims
    if options.action_bounds is not None:
        try:
            low, high = (np.asarray(side, np.float64) for side in options.action_bounds)
        except (ValueError, TypeError):
            raise UserError("are not (low, high), two lists of numbers", where=where) from None
        if low.shape != (dims,) or high.shape != (dims,):
            raise UserError(f"are {low.shape} and {high.shape}; actions have {dims} dimensions", where=where)
    elif card.actions is not None:
        low, high = card.actions.limits()
    else:
        low, high = np.full(dims, -np.inf), np.full(dims, np.inf)
    if not np.isfinite([low, high]).all():
        raise UserError(
            "the world model's action card does not bound every dimension",
            where=where,
            remedy="give action_bounds=(low, high)",
        )
    if (low > high).any():
        raise UserError("a lower bound lies above its upper one", where=where)
    return low.astype(np.float32), high.astype(np.float32)
