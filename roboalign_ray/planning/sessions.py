"""World models for RL systems that rent them as sessions: open, generate, close, and give the memory back in between.

    sessions = WorldModelSessions(lambda: open_world_model("runs/mine/world_model"))
    one = sessions.open(frame, "open the drawer", seed=0)
    frames = sessions.generate(one, actions)          any number of actions at a time
    sessions.offload()                                a trainer takes the device
    sessions.onload()                                 and gives it back: sessions go on where they were
    sessions.close(one)

Not bound to any of these systems: the five calls are what they have in common.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import ModelCard, Prompt, WorldModel

_WHERE = "session"


@dataclass
class _Session:
    """A session's state, or its arrays while the world model is offloaded, and the frames that it has generated."""

    state: Any
    frames: int = 0


class WorldModelSessions:
    """Sessions of one world model; each is one rollout, which does not depend on other sessions or on offloading.

    A decoder's last bit may depend on how many frames are asked for at once, and so one grey level.

    Args:
        opener: opens the world model; called again by `onload`.
    """

    def __init__(self, opener: Callable[[], WorldModel]) -> None:
        self._opener = opener
        self._model: WorldModel | None = opener()
        self.card: ModelCard = self._model.card
        self._sessions: dict[int, _Session] = {}
        self._next = 0

    @property
    def offloaded(self) -> bool:
        """Whether the world model holds no memory now."""
        return self._model is None

    def open(
        self, frame: np.ndarray, instruction: str = "", *, seed: int = 0, reference: np.ndarray | None = None
    ) -> int:
        """Begin a session.

        Args:
            frame: uint8 [V, H, W, 3] or [H, W, 3], frame 0.
            instruction: the sentence, where the model reads it.
            seed: of the predictions.
            reference: a frame that the model sees all the time; None takes frame 0.

        Returns:
            The session's number, which is never used again.

        Raises:
            UserError: the frame does not fit the world model, or it is offloaded.
        """
        number = self._next
        context = frame if reference is None else reference
        prompt = Prompt(f"session {number}", context, frame, np.empty((0, 0), np.float32), instruction)
        state = self._loaded().begin([prompt], [(int(seed),)])
        self._sessions[number] = _Session(state)
        self._next += 1
        return number

    def generate(self, session: int, actions: np.ndarray) -> np.ndarray:
        """The next frames, uint8 [h, V, H, W, 3].

        Args:
            session: of `open`.
            actions: float [h, A], in the units of the world model's action card.

        Raises:
            UserError: there is no such session, the actions do not fit, or the world model is offloaded.
        """
        held, model = self._session(session), self._loaded()
        values = np.asarray(actions, np.float32)
        if values.ndim != 2 or not len(values):
            raise UserError(f"actions are of shape {list(values.shape)}, not [h, A]", where=_WHERE)
        if not np.isfinite(values).all():
            raise UserError("an action is not finite", where=_WHERE)
        # The session changes only when both calls have succeeded.
        state = model.step(held.state, values[None])
        frames = model.frames(state, held.frames)[0]
        held.state, held.frames = state, held.frames + len(values)
        return frames

    def close(self, session: int) -> None:
        """End a session and free its state; also while the world model is offloaded.

        Raises:
            UserError: there is no such session.
        """
        self._session(session)
        del self._sessions[session]

    def offload(self) -> None:
        """Free the world model's memory; sessions are kept as arrays in the main memory. Twice is once."""
        if (model := self._model) is None:
            return
        for held in self._sessions.values():
            held.state = model.save(held.state)
        self._model = model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def onload(self) -> None:
        """Open the world model again and take up the sessions. Twice is once.

        Raises:
            UserError: it cannot be opened, or has other weights than the current segment of a session was begun
                with; it then stays offloaded. New weights take effect where segments end.
        """
        if self._model is not None:
            return
        model = self._opener()
        states = {number: model.load(held.state) for number, held in self._sessions.items()}
        for number, state in states.items():
            self._sessions[number].state = state
        self._model = model

    def _loaded(self) -> WorldModel:
        if self._model is None:
            raise UserError("the world model is offloaded", where=_WHERE, remedy="call onload first")
        return self._model

    def _session(self, number: int) -> _Session:
        if number not in self._sessions:
            raise UserError(f"no open session {number}", where=_WHERE)
        return self._sessions[number]
