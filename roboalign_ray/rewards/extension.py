"""Rewards from outside this package: a class with `score`, or a function. The answers are checked.

    class Mine:                                  def mine(inputs: RewardInput, config: MyConfig): ...
        class Config(pydantic.BaseModel): ...
        def __init__(self, config: Config): ...
        def score(self, inputs: RewardInput): ...

Both return one `Scored`, `Failed` or number per sample. `Config`, its parameter and the function's second parameter are
optional. A class that needs the scorer's device or student has a class method `from_context(config, context)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from pydantic import BaseModel

from roboalign_ray.config.complaints import read_settings
from roboalign_ray.config.rewards import ExtensionRewardConfig
from roboalign_ray.foundation.failures import Failed, ReportedError, UserError, first_line, raise_if_host
from roboalign_ray.rewards.protocol import RewardContext, RewardInput, Score, Scored

KIND = "reward"  # kind of the failures that an extension causes
Extension = Callable[..., Any]  # the class, or the function


class ExtensionReward:
    """Implements `Reward`. An exception or an invalid answer fails only the group's samples.

    Args:
        name: name of the extension, for messages.
        ask: calls the extension for a group.
    """

    def __init__(self, name: str, ask: Callable[[RewardInput], Any]) -> None:
        self.name, self._ask = name, ask

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        samples, frames = inputs.generated.shape[:2]
        try:
            answers = list(self._ask(inputs))
        except Exception as error:
            raise_if_host(error, where=self.name)
            return [self._failed(f"{type(error).__name__}: {first_line(error)}")] * samples
        if len(answers) != samples:
            return [self._failed(f"{len(answers)} scores for {samples} samples")] * samples
        return [self._score(answer, frames) for answer in answers]

    def _score(self, answer: Any, frames: int) -> Score:
        if isinstance(answer, Failed):
            return answer
        if isinstance(answer, Real) and not isinstance(answer, bool):  # includes NumPy's numbers
            answer = Scored(float(answer))
        if not isinstance(answer, Scored):
            return self._failed(f"a score is of type {type(answer).__name__}")
        try:
            answer = _plain(answer)
        except (TypeError, ValueError) as error:
            return self._failed(f"a score holds what is no number ({first_line(error)})")
        if answer.per_frame is not None and answer.per_frame.shape != (frames,):
            return self._failed(f"per_frame is {answer.per_frame.shape}, not [{frames}]")
        numbers = [
            answer.total,
            *answer.components.values(),
            *([] if answer.per_frame is None else answer.per_frame),
        ]
        return answer if np.isfinite(numbers).all() else Failed(f"{self.name}: a score is not finite", "nan")

    def _failed(self, reason: str) -> Failed:
        return Failed(f"{self.name}: {reason}", KIND)


def _plain(answer: Scored) -> Scored:
    """The same score in Python numbers, which journals and other processes accept."""
    parts = {str(name): float(value) for name, value in answer.components.items()}
    per_frame = None if answer.per_frame is None else np.asarray(answer.per_frame, np.float64)
    return Scored(float(answer.total), parts, int(answer.version), per_frame)


def extension_fault(extension: Any) -> str | None:
    """The reason why an object is not a reward; None if it is one."""
    if isinstance(extension, type):
        if not callable(getattr(extension, "score", None)):
            return "has no method score"
        return "leaves methods abstract" if inspect.isabstract(extension) else None
    return None if callable(extension) else "is neither a class with a method score nor a function"


def extension_settings(
    name: str, extension: Extension, part: ExtensionRewardConfig, where: str
) -> BaseModel | None:
    """Check the settings of an extension, and that it can be called with them, without a call.

    Raises:
        UserError: the settings do not fit its model, or its constructor or function takes other arguments.
    """
    settings = read_settings(extension, part.settings, where)
    given = () if settings is None else (settings,)
    context_too = isinstance(extension, type) and hasattr(extension, "from_context")
    called: Extension = extension.from_context if context_too else extension  # type: ignore[attr-defined]
    expected = (settings, None) if context_too else given if isinstance(extension, type) else (None, *given)
    try:
        inspect.signature(called).bind(*expected)
    except ValueError:  # it has no readable signature
        return settings
    except TypeError as error:
        how = _how(extension, context_too, settings)
        raise UserError(
            f"'{name}' cannot be called ({error})", where=where, remedy=f"it is called {how}"
        ) from None
    return settings


def build_extension(
    name: str, extension: Extension, settings: BaseModel | None, context: RewardContext
) -> ExtensionReward:
    """The reward of an extension with its settings.

    Raises:
        ReportedError: its constructor failed.
    """
    given = () if settings is None else (settings,)
    if not isinstance(extension, type):
        return ExtensionReward(name, lambda inputs: extension(inputs, *given))
    build = getattr(extension, "from_context", None)
    make = partial(extension, *given) if build is None else partial(build, settings, context)
    try:
        return ExtensionReward(name, make().score)
    except ReportedError:
        raise
    except Exception as error:
        raise_if_host(error, where=name)
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"cannot be made ({reason[:300]})", where=f"reward.{name}") from error


def _how(extension: Extension, context_too: bool, settings: BaseModel | None) -> str:
    config = "" if settings is None else "config"
    if context_too:
        return "from_context(config, context)"
    if isinstance(extension, type):
        return f"{extension.__name__}({config}); settings need a pydantic model named Config in the class"
    return f"with (inputs{config and ', config'})"
