"""Where episodes of an environment begin: windows of an episode store, a picture and a sentence, or a saved state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from roboalign_ray.config import EpisodesConfig
from roboalign_ray.episodes.action_card_check import check_cards
from roboalign_ray.episodes.action_card_of_store import action_card_of
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.episodes.windows import empty_split
from roboalign_ray.foundation.failures import UserError, nearest_key
from roboalign_ray.planning.pictures import Picture, read_picture
from roboalign_ray.planning.rows import Cohort, Rows
from roboalign_ray.planning.scoring import ClipSoFar
from roboalign_ray.planning.state_files import SavedStates
from roboalign_ray.world_model.prompts import PromptReader
from roboalign_ray.world_model.protocol import ModelCard, Prompt, WorldModel

_PROMPTS_KEPT = 256


class Starts(Protocol):
    """Begins episodes."""

    @property
    def instructions(self) -> Sequence[str]:
        """Every sentence that an episode may have."""
        ...

    def begin(
        self, model: WorldModel, members: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> tuple[list[Cohort], list[ClipSoFar]]:
        """New episodes: their cohorts, and a clip for each member.

        Args:
            members: numbers of the sub-environments that begin.
            generators: one for each; the start state and the sampling seed come from it alone.
        """
        ...


class PromptStarts:
    """Episodes that begin with a single frame.

    Args:
        names: of the start states.
        read: gives the prompt of one.
        instructions: see `Starts`.
    """

    def __init__(
        self, names: Sequence[PromptName], reader: PromptReader, instructions: Sequence[str]
    ) -> None:
        self._names, self.instructions = list(names), list(instructions)
        self._prompt = lru_cache(_PROMPTS_KEPT)(lambda name: reader.prompt(name, 0))

    def begin(
        self, model: WorldModel, members: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> tuple[list[Cohort], list[ClipSoFar]]:
        """See `Starts.begin`."""
        drawn = [self._names[int(one.integers(len(self._names)))] for one in generators]
        return _begun(model, members, [self._prompt(name) for name in drawn], generators)


class PictureStart:
    """Episodes that begin with one picture.

    Args:
        frame: uint8 [V, H, W, 3].
        instruction: the sentence.
    """

    def __init__(self, frame: np.ndarray, instruction: str) -> None:
        self._prompt = Prompt("picture", frame, frame, np.empty((0, 0), np.float32), instruction)
        self.instructions = [instruction]

    def begin(
        self, model: WorldModel, members: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> tuple[list[Cohort], list[ClipSoFar]]:
        """See `Starts.begin`. All members share what the model computes of the picture."""
        return _begun(model, members, [self._prompt] * len(members), generators)


class SavedStart:
    """Episodes that go on from a saved state; each draws one of its sub-environments.

    Args:
        saved: what `save_state` gave.
        model: that it is of.
    """

    def __init__(self, saved: SavedStates, model: WorldModel) -> None:
        self._rows, self._episodes = Rows(model, saved.cohorts), saved.episodes
        self.instructions = [episode.instruction for episode in saved.episodes]

    def begin(
        self, model: WorldModel, members: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> tuple[list[Cohort], list[ClipSoFar]]:
        """See `Starts.begin`."""
        drawn = [int(one.integers(len(self._episodes))) for one in generators]
        begun = self._rows.branched(drawn, [(_seed(one),) for one in generators]).cohorts
        for cohort in begun:
            cohort.members = [members[place] for place in cohort.members]
        return begun, [self._episodes[number].clip() for number in drawn]


def store_starts(
    card: ModelCard,
    *,
    store: str | Path,
    split: str,
    windows: str | Sequence[str] | None,
    instruction: str | None,
) -> PromptStarts:
    """Start states from an episode store: first frames of a split's episodes, or windows by name.

    Args:
        card: of the world model; frames are resized to its size.
        windows: "episode@frame", one or several; None takes the first frame of every episode of the split.
        instruction: in place of the episode's own.

    Raises:
        UserError: no such store, split, episode or frame, or its actions mean something else than the world model's.
    """
    opened = open_store(store)
    if card.actions is not None:
        # Both count from the recording: a store that was converted with a stride has a part of it done.
        recorded = action_card_of(opened)
        left, rest = divmod(card.actions.stride or 1, recorded.stride or 1)
        check_cards(recorded.strided(1 if rest else left), card.actions).require(str(opened.path))
    if split not in ("train", "held_out"):
        raise UserError(f"no split '{split}'", where="split", remedy="train or held_out")
    numbers = {name: place for place, name in enumerate(opened.ids)}
    if windows is None:
        names = [PromptName(opened.ids[place], 0) for place in opened.split(split)]
        if not names:
            raise empty_split(opened, split)
    else:
        listed = [windows] if isinstance(windows, str) else list(windows)
        names = [_window(text, numbers, opened.lengths) for text in listed]
    if not names:
        raise UserError("names no start state", where="windows", remedy="write episode@frame")
    reader = _Reader(EpisodesConfig(store=str(store)), card, instruction)
    known = {opened.instructions[numbers[name.episode_id]] for name in names}
    return PromptStarts(names, reader, sorted(known) if instruction is None else [instruction])


def picture_start(card: ModelCard, picture: Picture, instruction: str | None) -> PictureStart:
    """One picture as the only start state.

    Raises:
        UserError: it is not of the world model's size.
    """
    return PictureStart(read_picture(picture, card, "image"), instruction or "")


class _Reader(PromptReader):
    """Prompts with an instruction of the user's."""

    def __init__(self, config: EpisodesConfig, card: ModelCard, instruction: str | None) -> None:
        super().__init__(config, card.height, card.width, card.views)
        self._instruction = instruction

    def prompt(self, name: PromptName, longest: int) -> Prompt:
        """See `PromptReader.prompt`."""
        found = super().prompt(name, longest)
        if self._instruction is None:
            return found
        return Prompt(found.prompt_id, found.context, found.start, found.actions, self._instruction)


def _window(text: str, numbers: Mapping[str, int], lengths: Sequence[int]) -> PromptName:
    try:
        name = PromptName.parse(text)
    except ValueError:
        raise UserError(f"'{text}' is no window", where="windows", remedy="write episode@frame") from None
    if name.episode_id not in numbers:
        remedy = nearest_key(name.episode_id, list(numbers)[:10000])
        raise UserError(f"no episode '{name.episode_id}'", where="windows", remedy=remedy)
    if not 0 <= name.start < (length := lengths[numbers[name.episode_id]]):
        raise UserError(f"no frame {name.start}, the episode has {length}", where=f"windows: {text}")
    return PromptName(name.episode_id, name.start)


def _begun(
    model: WorldModel,
    members: Sequence[int],
    prompts: Sequence[Prompt],
    generators: Sequence[np.random.Generator],
) -> tuple[list[Cohort], list[ClipSoFar]]:
    seeds = [_seed(generator) for generator in generators]
    if all(prompt is prompts[0] for prompt in prompts):
        state = model.begin([prompts[0]], [tuple(seeds)])
    else:
        state = model.begin(prompts, [(seed,) for seed in seeds])
    none = np.empty((0, *prompts[0].start.shape), np.uint8)
    clips = [ClipSoFar(p.instruction, p.start, none, np.empty((0, 0), np.float32)) for p in prompts]
    return [Cohort(state, 0, list(members))], clips


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**63))
