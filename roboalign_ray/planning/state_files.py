"""An environment's state as arrays of numbers and back: what `np.savez` writes and another process reads.

Held are the world model's states as the model saves them, what each episode remembers, and the generators. Weights are
not: a digest of them is, so that a state of another checkpoint is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.readers import parse_json, read_arrays, validated
from roboalign_ray.planning.episodes import EpisodeSoFar
from roboalign_ray.planning.rows import LEFT, Cohort
from roboalign_ray.world_model.protocol import ModelCard, WorldModel

FORMAT = 1
_WHERE, _WHAT = "saved state", "state of an environment"


class _CohortForm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    age: int
    members: list[int]
    arrays: list[str]


class _EpisodeForm(BaseModel):
    model_config = ConfigDict(extra="forbid")

    instruction: str
    steps: int
    score: float
    over: bool


class _Form(BaseModel):
    """The header."""

    model_config = ConfigDict(extra="forbid")

    format: int
    model: str
    weights: str
    cohorts: list[_CohortForm]
    episodes: list[_EpisodeForm]
    generators: list[dict[str, Any]]


@dataclass(frozen=True)
class SavedStates:
    """What a saved state holds.

    Attributes:
        cohorts: with states of the model that reads them.
        episodes: one per sub-environment.
        generators: one per sub-environment.
    """

    cohorts: list[Cohort]
    episodes: list[EpisodeSoFar]
    generators: list[np.random.Generator]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a state is of.

    Attributes:
        model: digest of kind, sizes and action card; the model checks the weight version itself.
        weights: digest of the folder's weights; "" for a model that was given as an object.
    """

    model: str
    weights: str

    @classmethod
    def of(cls, card: ModelCard, folder: Path | None) -> ModelIdentity:
        """That of a model, and of the folder that it was read from."""
        text = json.dumps(replace(card, version=0).as_json(), sort_keys=True)
        return cls(hashlib.sha256(text.encode()).hexdigest(), "" if folder is None else _digest(folder))


def state_arrays(
    model: WorldModel,
    identity: ModelIdentity,
    cohorts: Sequence[Cohort],
    episodes: Sequence[EpisodeSoFar],
    generators: Sequence[np.random.Generator],
) -> dict[str, np.ndarray]:
    """The arrays by name; "environment" is JSON text as uint8."""
    arrays: dict[str, np.ndarray] = {}
    described = []
    for number, cohort in enumerate(cohorts):
        saved = model.save(cohort.state)
        described.append({"age": cohort.age, "members": cohort.members, "arrays": sorted(saved)})
        arrays |= {f"cohort{number}_{name}": values for name, values in saved.items()}
    for number, episode in enumerate(episodes):
        clip = episode.clip()
        parts = {"start": clip.start, "frames": clip.frames, "actions": clip.actions}
        arrays |= {f"episode{number}_{name}": values for name, values in parts.items()}
    plain = ("instruction", "steps", "score", "over")
    header = {
        "format": FORMAT,
        **vars(identity),
        "cohorts": described,
        "episodes": [{name: getattr(episode, name) for name in plain} for episode in episodes],
        "generators": [_plain(generator.bit_generator.state) for generator in generators],
    }
    return {"environment": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}


def read_states(
    source: str | Path | Mapping[str, np.ndarray], model: WorldModel, identity: ModelIdentity
) -> SavedStates:
    """Inverse of `state_arrays`.

    Args:
        source: arrays, or the path of an npz file of them.
        model: holds the same weights.
        identity: of the model.

    Raises:
        UserError: no such state, damaged, or of another model.
    """
    where, arrays = _WHERE, source
    if isinstance(arrays, str | Path):
        where, arrays = str(arrays), read_arrays(Path(arrays), _WHAT)
    try:
        header = validated(
            parse_json(arrays["environment"].tobytes(), where=where, what=_WHAT), _Form, _WHAT, where=where
        )
        _check(header, identity, where)
        cohorts = [_cohort(form, number, arrays, model) for number, form in enumerate(header.cohorts)]
        episodes = [_episode(form, number, arrays) for number, form in enumerate(header.episodes)]
        _check_members(cohorts, len(episodes))
        return SavedStates(cohorts, episodes, [_generator(state) for state in header.generators])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"is no {_WHAT} ({first_line(error)})", where=where) from error


def _check(header: _Form, identity: ModelIdentity, where: str) -> None:
    if header.format != FORMAT:
        raise UserError(f"is of format {header.format}, this version reads {FORMAT}", where=where)
    if header.model != identity.model:
        raise UserError("is of another world model: kind, sizes or action card differ", where=where)
    if header.weights and identity.weights and header.weights != identity.weights:
        raise UserError(
            "is of another checkpoint", where=where, remedy="open the world model that it was saved from"
        )


def _check_members(cohorts: Sequence[Cohort], count: int) -> None:
    members = [member for cohort in cohorts for member in cohort.members if member != LEFT]
    if sorted(members) != list(range(count)):
        raise ValueError(f"rows of {len(members)} sub-environments, episodes of {count}")


def _cohort(form: _CohortForm, number: int, arrays: Mapping[str, np.ndarray], model: WorldModel) -> Cohort:
    state = model.load({name: arrays[f"cohort{number}_{name}"] for name in form.arrays})
    return Cohort(state, form.age, list(form.members))


def _episode(form: _EpisodeForm, number: int, arrays: Mapping[str, np.ndarray]) -> EpisodeSoFar:
    start, frames, actions = (arrays[f"episode{number}_{name}"] for name in ("start", "frames", "actions"))
    if frames.dtype != np.uint8 or start.dtype != np.uint8 or frames.shape[1:] != start.shape:
        raise ValueError(f"frames {frames.dtype} {frames.shape} behind a start {start.dtype} {start.shape}")
    if len(frames) != len(actions):
        raise ValueError(f"{len(frames)} frames for {len(actions)} actions")
    return EpisodeSoFar(
        form.instruction, start, list(frames), list(actions), form.steps, form.score, form.over
    )


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
    if state.get("bit_generator") != "PCG64":
        raise ValueError("a generator of another kind than PCG64")
    bits = np.random.PCG64()
    whole: Any = {**state, "state": {name: int(value) for name, value in state["state"].items()}}
    bits.state = whole
    return np.random.Generator(bits)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A generator's state in JSON types; its numbers of 128 bits as text, which every reader of JSON keeps."""
    return {**state, "state": {name: str(value) for name, value in state["state"].items()}}


def _digest(folder: Path) -> str:
    """SHA-256 over the weights of a folder; over all of its files where it has no safetensors."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"] or files
    total = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
