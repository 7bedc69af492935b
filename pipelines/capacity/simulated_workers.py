"""Workers of the simulated loop: pools that count the states of their workers, and random durations of work."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from roboalign_ray.config.asynchrony import StageTimeConfig


def draw(stage: StageTimeConfig, source: random.Random) -> float:
    """Draw the seconds of one group: mean `seconds`, coefficient of variation `variation` if the shape has one.

    Pareto: with a = 1 + sqrt(1 + 1/variation^2) and minimum seconds (a - 1) / a.
    """
    mean, variation = stage.seconds, stage.variation
    if stage.shape == "constant" or mean == 0:
        return mean
    if stage.shape == "exponential":
        return mean * source.expovariate(1.0)
    if stage.shape == "lognormal":
        variance = math.log1p(variation**2)
        return mean * math.exp(source.gauss(-variance / 2, math.sqrt(variance)))
    exponent = 1 + math.sqrt(1 + 1 / variation**2)
    return mean * (exponent - 1) / exponent * source.paretovariate(exponent)


@dataclass
class SimulatedPool:
    """Equal workers of a role: the numbers of idle, busy, blocked and lost workers, and the time in each state."""

    workers: int
    idle: int = field(init=False)
    goal: int = field(init=False)
    busy: int = 0
    held: int = 0
    coming: int = 0
    busy_s: float = 0.0
    held_s: float = 0.0
    worker_s: float = 0.0
    busy_since_look: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        self.idle = self.goal = self.workers

    def tally(self, now: float) -> None:
        """Add the time since the last change to the totals."""
        elapsed, self.last = now - self.last, now
        self.busy_s += elapsed * self.busy
        self.busy_since_look += elapsed * self.busy
        self.held_s += elapsed * self.held
        self.worker_s += elapsed * self.workers

    def busy_since(self, now: float) -> float:
        """Worker-seconds of work since the last call."""
        self.tally(now)
        return self.busy_since_look

    def forget(self, now: float) -> None:
        """Reset the totals, to measure from now on."""
        self.tally(now)
        self.busy_s = self.held_s = self.worker_s = 0.0

    def take(self, now: float) -> None:
        """An idle worker starts work."""
        self.tally(now)
        self.idle -= 1
        self.busy += 1

    def hold(self, now: float) -> None:
        """A busy worker is done but cannot pass its group on."""
        self.tally(now)
        self.busy -= 1
        self.held += 1

    def give(self, now: float, *, held: bool = False) -> None:
        """A worker is free again; it is removed if there are too many."""
        self.tally(now)
        if held:
            self.held -= 1
        else:
            self.busy -= 1
        self.idle += 1
        self.retire(now)

    def retire(self, now: float) -> None:
        """Remove idle workers beyond the target."""
        leaving = min(self.idle, self.workers - self.goal)
        if leaving > 0:
            self.tally(now)
            self.idle -= leaving
            self.workers -= leaving

    def arrive(self, now: float) -> None:
        """A requested worker has started."""
        self.tally(now)
        self.coming -= 1
        self.workers += 1
        self.idle += 1
        self.retire(now)

    def fall(self, now: float) -> None:
        """A busy worker is lost."""
        self.tally(now)
        self.busy -= 1

    def rise(self, now: float) -> None:
        """A lost worker has been replaced."""
        self.tally(now)
        self.idle += 1
        self.retire(now)
