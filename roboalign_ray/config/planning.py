"""Settings of the planners: how many candidates, how they are shaped, and when a search ends."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from roboalign_ray.config.base import FrozenConfig


class PlannerConfig(FrozenConfig):
    """What every planner has.

    Attributes:
        smoothness: added to a candidate's cost per unit of its roughness: the mean squared change from one action to
            the next, in halves of each dimension's range. 0 ignores it.
        elites: best candidates that the result keeps of every iteration.
    """

    smoothness: float = Field(0.0, ge=0)
    elites: PositiveInt = 8


class SearchConfig(PlannerConfig):
    """What planners have that draw candidates.

    Attributes:
        candidates: per iteration.
        iterations: most iterations.
        seconds: time budget; null for none. The first iteration always runs, a further one only where the longest one
            so far would still fit.
        knots: a candidate is given at this many points of time, spread evenly from the first action to the last one,
            and runs straight between them; one number, or one per action dimension. 1 holds one value. null leaves
            every action free.
        straight: share of the candidates that hold one action over the whole horizon.
    """

    candidates: PositiveInt = 64
    iterations: PositiveInt = 4
    seconds: float | None = Field(None, gt=0)
    knots: PositiveInt | list[PositiveInt] | None = None
    straight: float = Field(0.0, ge=0, le=1)


class CemConfig(SearchConfig):
    """The cross-entropy method.

    Attributes:
        spread: first standard deviation, in halves of each dimension's range.
        momentum: share of the old mean and deviation that an iteration keeps.
        least_spread: smallest standard deviation, in the same unit.
        kept: best candidates that go on to the next iteration with the cost that they have.
    """

    spread: float = Field(0.5, gt=0)
    momentum: float = Field(0.1, ge=0, lt=1)
    least_spread: float = Field(0.01, ge=0)
    kept: NonNegativeInt = 2


class MppiConfig(SearchConfig):
    """Model predictive path integral control, repeated with shrinking noise.

    Attributes:
        spread: first standard deviation of the noise, in halves of each dimension's range.
        decay: factor on the deviation from one iteration to the next.
        temperature: of the weights exp(-cost / temperature), in standard deviations of the set's costs.
    """

    spread: float = Field(0.5, gt=0)
    decay: float = Field(0.7, gt=0, le=1)
    temperature: float = Field(0.2, gt=0)


class RefineConfig(SearchConfig):
    """Gradient-free refinement of a plan.

    Attributes:
        spread: first standard deviation of the changes, in halves of each dimension's range. It grows where more than
            a fifth of the changes help, and shrinks where fewer do.
        least_spread: smallest standard deviation, in the same unit.
    """

    spread: float = Field(0.2, gt=0)
    least_spread: float = Field(0.002, ge=0)
