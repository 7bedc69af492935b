"""A world model of a few lines that is made of no tokens: a bright square that actions move, seen by two cameras.

Everything that a package outside this repository would have to write: payload, model, decoder, and the kind that the
registry opens. Its weights are one number, how far an action moves the square.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from roboalign_ray.config import RolloutConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import ModelCard, Prompt, Rollout, RolloutCost
from roboalign_ray.world_model.refresh import RefreshPlan
from roboalign_ray.world_model.registry import write_description
from roboalign_ray.world_model.whole_rollouts import WholeRollouts

SIDE, GAIN = 32, 1.0


@dataclass(frozen=True)
class ToySegment:
    places: np.ndarray  # float64 [G, n], columns of the square
    version: int

    @property
    def frames(self) -> int:
        return self.places.shape[1]


@dataclass(frozen=True)
class ToyPayload:
    kind: ClassVar[str] = "toy"

    segments: tuple[ToySegment, ...]

    def __post_init__(self) -> None:
        if len({len(segment.places) for segment in self.segments}) != 1:
            raise ValueError("no segments, or of several sizes")

    @property
    def samples(self) -> int:
        return len(self.segments[0].places)

    @property
    def units(self) -> int:
        return sum(segment.places.size for segment in self.segments)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {f"places{number}": segment.places for number, segment in enumerate(self.segments)}
        return {"versions": [segment.version for segment in self.segments]}, arrays

    @classmethod
    def from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> ToyPayload:
        versions = enumerate(header["versions"])
        return cls(tuple(ToySegment(arrays[f"places{number}"], version) for number, version in versions))


@dataclass(frozen=True)
class ToyState:
    prompts: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[int, ...], ...]
    start: np.ndarray  # float64 [rows]
    places: np.ndarray  # float64 [rows, frames]
    segments: tuple[tuple[int, int, float], ...] = ()  # first frame, weight version, gain
    origin: int = 0


@dataclass(frozen=True)
class ToyDecoder:
    views: int

    @property
    def card(self) -> ModelCard:
        return ModelCard("toy", views=self.views, height=SIDE, width=SIDE, action_dims=2)

    def decode(self, rollout: Rollout) -> np.ndarray:
        if not isinstance(rollout.payload, ToyPayload):
            raise ValueError("not the toy's")
        places = np.concatenate([segment.places for segment in rollout.payload.segments], axis=1)
        if not (np.abs(places) < 1e6).all():
            raise ValueError("the square left the world")
        return draw(places, self.views)


@dataclass
class ToyModel(WholeRollouts[ToyState]):
    policy: RefreshPlan
    decoder: ToyDecoder
    gain: float = GAIN
    version: int = 0
    work: int = 0

    @property
    def card(self) -> ModelCard:
        return replace(self.decoder.card, version=self.version)

    def plan(self, horizon: int) -> tuple[int, ...]:
        return self.policy.segments(horizon)

    def begin(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]]) -> ToyState:
        if len(prompts) != len(seeds) or len({len(own) for own in seeds}) != 1:
            raise UserError(f"{len(seeds)} tuples of seeds for {len(prompts)} prompts", where="begin")
        start = np.repeat([float(prompt.start[0, 0].argmax() // 3) for prompt in prompts], len(seeds[0]))
        names = tuple((prompt.prompt_id, prompt.instruction) for prompt in prompts)
        return ToyState(names, tuple(map(tuple, seeds)), start, np.zeros((len(start), 0)))

    def step(self, state: ToyState, actions: np.ndarray) -> ToyState:
        rows = len(state.start)
        fits = actions.ndim == 3 and actions.shape[1] and actions.shape[2] == 2
        if not fits or len(actions) not in (rows, len(state.seeds)):
            raise UserError(f"actions have shape {actions.shape}", where="step")
        for action in np.repeat(actions, rows // len(actions), axis=0).swapaxes(0, 1):
            state = self._frame(state, action)
        return state

    def _frame(self, state: ToyState, action: np.ndarray) -> ToyState:
        self.work += 1
        done, places, segments = state.places.shape[1], state.places, state.segments
        last = places[:, -1] if done else state.start
        if not segments or self.policy.left(done - segments[-1][0]) == 0:
            segments = (*segments, (done, self.version, self.gain))
            last = np.round(last)
        drawn = done - state.origin
        noise = [random(seed, drawn) for own in state.seeds for seed in own]
        moved = last + segments[-1][2] * action[:, 1] + noise
        return replace(state, places=np.concatenate([places, moved[:, None]], axis=1), segments=segments)

    def frames(self, state: ToyState, since: int = 0) -> np.ndarray:
        if not 0 <= since < state.places.shape[1]:
            raise UserError(f"no frame {since}", where="frames")
        return draw(state.places[:, since:], self.decoder.views)

    def branch(self, state: ToyState, rows: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> ToyState:
        if len(rows) != len(seeds) or not all(0 <= row < len(state.start) for row in rows):
            raise UserError(f"{len(seeds)} tuples of seeds for rows {list(rows)}", where="branch")
        chosen, samples, old = np.asarray(rows), len(seeds[0]), len(state.seeds[0])
        return replace(
            state,
            prompts=tuple(state.prompts[row // old] for row in rows),
            seeds=tuple(map(tuple, seeds)),
            start=np.repeat(state.start[chosen], samples),
            places=np.repeat(state.places[chosen], samples, axis=0),
            origin=state.places.shape[1],
        )

    def rollouts(self, state: ToyState) -> list[Rollout]:
        frames, samples = state.places.shape[1], len(state.seeds[0])
        if frames == state.origin:
            raise UserError("nothing is generated yet", where="rollouts")
        ends = [*(first for first, _, _ in state.segments[1:]), frames]
        spans = [
            (max(first, state.origin), end, version)
            for (first, version, _), end in zip(state.segments, ends, strict=True)
            if end > state.origin
        ]
        cost = RolloutCost(np.zeros(frames - state.origin))
        return [
            Rollout(
                name,
                told,
                state.seeds[group],
                ToyPayload(tuple(ToySegment(rows[:, first:end].copy(), v) for first, end, v in spans)),
                cost,
                state.origin,
            )
            for group, (name, told) in enumerate(state.prompts)
            for rows in [state.places[group * samples : (group + 1) * samples]]
        ]

    def save(self, state: ToyState) -> dict[str, np.ndarray]:
        told = json.dumps([state.prompts, state.seeds, state.segments, state.origin]).encode()
        return {"told": np.frombuffer(told, np.uint8), "start": state.start, "places": state.places}

    def load(self, arrays: Mapping[str, np.ndarray]) -> ToyState:
        try:
            prompts, seeds, segments, origin = json.loads(arrays["told"].tobytes())
            parts = [tuple(map(tuple, part)) for part in (prompts, seeds, segments)]
            return ToyState(parts[0], parts[1], arrays["start"], arrays["places"], parts[2], origin)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError("is no state of the toy", where="load") from error

    def load_weights(self, state_dict: Mapping[str, Any], version: int) -> None:
        if "gain" not in state_dict:
            raise UserError("holds no 'gain'", where="toy")
        self.gain, self.version = float(state_dict["gain"]), version

    def decode(self, rollout: Rollout) -> np.ndarray:
        return self.decoder.decode(rollout)


class ToyKind:
    payload = ToyPayload

    @classmethod
    def check(cls, folder: Path, *, tokenizer: Path | None, config: Any = None) -> ModelCard:
        return cls.open_decoder(folder, tokenizer=tokenizer, device=None).card

    @classmethod
    def open_model(
        cls, folder: Path, rollout: RolloutConfig, *, tokenizer: Path | None, device: str | None
    ) -> ToyModel:
        decoder = cls.open_decoder(folder, tokenizer=tokenizer, device=device)
        return ToyModel(RefreshPlan.of(rollout.refresh), decoder, float(cls.read_weights(folder)["gain"]))

    @classmethod
    def open_decoder(cls, folder: Path, *, tokenizer: Path | None, device: str | None) -> ToyDecoder:
        return ToyDecoder(json.loads((folder / "toy.json").read_text())["views"])

    @classmethod
    def read_weights(cls, folder: Path) -> Mapping[str, Any]:
        return {"gain": np.float64(json.loads((folder / "toy.json").read_text())["gain"])}


def draw(places: np.ndarray, views: int) -> np.ndarray:
    """Frames uint8 [rows, n, views, SIDE, SIDE, 3] of columns [rows, n]; every second camera stands on its side."""
    columns = np.round(places).astype(np.int64)[..., None] % SIDE
    lit = (np.arange(SIDE) - columns) % SIDE < 8
    front = np.where(lit[..., None, :, None], np.uint8(220), np.uint8(40))
    front = np.broadcast_to(front, (*places.shape, SIDE, SIDE, 3))
    return np.stack([front.swapaxes(-2, -3) if view % 2 else front for view in range(views)], axis=2)


def random(seed: int, number: int) -> float:
    """The seed's number `number`, in [-1, 1)."""
    return float(np.random.Generator(np.random.Philox(key=seed)).random(number + 1)[-1] * 2 - 1)


def write_toy(folder: Path, views: int = 2, gain: float = GAIN) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.json").write_text(json.dumps({"views": views, "gain": gain}))
    write_description(folder, "toy")


def install_toy(site: Path) -> None:
    """As an installer leaves a package that brings the toy: an entry point in a folder on the import path."""
    folder = site / "toy_world_model-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-world-model\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[roboalign_ray.world_models]\ntoy = toy_world_model:ToyKind\n")
