"""What plans are tried in: a world model, or the true simulator, whose rows of a table are the ceilings.

Both give `Predictions`, so that one cost reads either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from roboalign_ray.episodes.sources.metaworld_simulator import MetaworldSimulator, SimulatorState
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.closed_loop.scene import Scene
from roboalign_ray.planning.costs import (
    Imagined,
    ModelCost,
    PlanningState,
    Predictions,
    Term,
    check_terms,
    weighted_sum,
)
from roboalign_ray.planning.progress.distances import distances, progress_cost
from roboalign_ray.planning.protocol import Cost
from roboalign_ray.planning.scoring import ClipSoFar
from roboalign_ray.world_model.protocol import Prompt, WorldModel

Terms = Mapping[str, tuple[Term, float]]
_NOTHING = np.empty(0)


class Dynamics(Protocol):
    """Where candidates are tried."""

    @property
    def cost(self) -> Cost:
        """Of candidates from a state."""
        ...

    def state(self, scene: Scene) -> Any:
        """Where candidates start now."""
        ...

    def predict(self, state: Any, actions: np.ndarray, seed: int) -> Predictions:
        """What actions float32 [H, A] lead to, as the search with this seed sees it."""
        ...


class ModelDynamics:
    """A world model that sees the last real frames.

    Args:
        model: any kind.
        terms: of the cost.
        history: frames before the current one that the model is given.
        samples: predictions per candidate.
    """

    def __init__(self, model: WorldModel, terms: Terms, *, history: int, samples: int) -> None:
        self._model, self._history = model, history
        self.cost: Cost = ModelCost(model, terms, samples=samples)

    def state(self, scene: Scene) -> PlanningState:
        """The model's state behind the frames that were seen; its reference is the first one."""
        count = min(self._history, len(scene.actions))
        prompt = Prompt(
            f"{scene.simulator.task}/{scene.start}@{len(scene.actions)}",
            context=scene.frames[0],
            start=scene.frames[-1],
            actions=np.empty((0, len(scene.actions[0]) if scene.actions else 0), np.float32),
            instruction=scene.instruction,
            past=np.stack(scene.frames[-1 - count : -1]) if count else None,
            past_actions=np.stack(scene.actions[-count:]) if count else None,
        )
        return PlanningState(self._model.begin([prompt], [(0,)]), 0, 0, scene.clip())

    def predict(self, state: PlanningState, actions: np.ndarray, seed: int) -> Imagined:
        """The first of the predictions that the cost averages over."""
        first = int(np.random.default_rng(seed).integers(2**63, size=1)[0])
        return Imagined(self._model, state, actions[None], (first,))


@dataclass(frozen=True)
class SimulatedState:
    """Where candidates start in the simulator: its state, and what was seen so far."""

    state: SimulatorState
    clip: ClipSoFar


class Simulated(Predictions):
    """What the true simulator does; each property simulates when it is first asked for, and then goes back.

    Args:
        simulator: whose state is restored afterwards.
        start: where all rows start.
        actions: float32 [R, H, 4].
    """

    def __init__(self, simulator: MetaworldSimulator, start: SimulatedState, actions: np.ndarray) -> None:
        self.clip, self.actions = start.clip, actions
        self._simulator, self._start = simulator, start

    @cached_property
    def frames(self) -> np.ndarray:
        """Uint8 [R, H, V, height, width, 3]."""
        return self._run(self._picture, every=True)

    @cached_property
    def last_frame(self) -> np.ndarray:
        """Uint8 [R, V, height, width, 3]; the other frames are not rendered for it."""
        if "frames" in vars(self):
            return self.frames[:, -1]
        return self._run(self._picture, every=False)[:, 0]

    @cached_property
    def distances(self) -> np.ndarray:
        """True object–target and hand–object distances in metres, float32 [R, H, 2]; renders nothing."""
        return self._run(lambda: distances(self._simulator.labels.read()), every=True)

    def _picture(self) -> np.ndarray:
        return np.stack([self._simulator.frame(view) for view in self._simulator.config.views])

    def _run(self, look: Any, *, every: bool) -> np.ndarray:
        rows = []
        for row in self.actions:
            self._simulator.restore(self._start.state)
            seen = []
            for number, action in enumerate(row):
                self._simulator.interval(_NOTHING, self._simulator.hold(action), False)
                if every or number == len(row) - 1:
                    seen.append(look())
            rows.append(np.stack(seen))
        self._simulator.restore(self._start.state)
        return np.stack(rows)


class SimulatorDynamics:
    """The true simulator, from the scene's own state.

    Args:
        simulator: of the scene.
        terms: of the cost.
    """

    def __init__(self, simulator: MetaworldSimulator, terms: Terms) -> None:
        check_terms(terms)
        self._simulator, self._terms = simulator, dict(terms)

    def state(self, scene: Scene) -> SimulatedState:
        """The simulator's state."""
        return SimulatedState(self._simulator.save(), scene.clip())

    def cost(self, state: SimulatedState, candidates: np.ndarray, seed: int) -> np.ndarray:
        """Implements `Cost`; nothing is random."""
        return weighted_sum(self._terms, Simulated(self._simulator, state, candidates))

    def predict(self, state: SimulatedState, actions: np.ndarray, seed: int) -> Simulated:
        """What they lead to."""
        return Simulated(self._simulator, state, actions[None])


def privileged_term(predicted: Predictions) -> np.ndarray:
    """The progress cost of true distances, mean over the horizon, float64 [R]; for the simulator alone.

    Raises:
        UserError: the predictions are those of a world model.
    """
    if not isinstance(predicted, Simulated):
        raise UserError("true distances are known in the simulator alone", where="privileged cost")
    return progress_cost(predicted.distances).mean(axis=1)
