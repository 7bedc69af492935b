"""Sub-environments as rows of world-model states.

Rows of a state advance together, and sub-environments begin at different times. So those that begin in one reset form
a cohort: one state, one call of the model per step.

    reset of all      ─►  cohort [0 1 2 3]
    2 begins anew     ─►  cohort [0 1 · 3], cohort [2]       the row of 2 in the first one is no longer read
    0, 1 and 3 too    ─►  cohort [2], cohort [0 1 3]         a cohort without a member is dropped

A row that its member has left goes on being computed, because a state's rows cannot be taken out without new seeds,
and a sub-environment's frames must not depend on what the others do. The cost: a step makes one call per cohort, and a
cohort computes all of its rows until its last member has left. Where episodes end at the horizon alone, all members
leave together and nothing is computed in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign_ray.world_model.protocol import WorldModel

LEFT = -1  # stands for the member of a row that no sub-environment reads any more


@dataclass
class Cohort:
    """Sub-environments that began together.

    Attributes:
        state: of the world model.
        age: frames that it has generated.
        members: per row, the number of its sub-environment, or `LEFT`.
    """

    state: Any
    age: int
    members: list[int]


class Rows:
    """The rows of an environment's sub-environments.

    Args:
        model: that steps them.
        cohorts: no sub-environment is a member of two.
    """

    def __init__(self, model: WorldModel, cohorts: Sequence[Cohort] = ()) -> None:
        self._model, self.cohorts = model, list(cohorts)

    def begin(self, cohorts: Sequence[Cohort]) -> None:
        """Take in cohorts of sub-environments that begin anew; they leave those that they are in."""
        began = {member for cohort in cohorts for member in cohort.members}
        for cohort in self.cohorts:
            cohort.members = [LEFT if member in began else member for member in cohort.members]
        self.cohorts = [c for c in self.cohorts if any(member != LEFT for member in c.members)]
        self.cohorts += cohorts

    def find(self, member: int) -> tuple[Cohort, int]:
        """The cohort of a sub-environment, and its row there."""
        return next((c, c.members.index(member)) for c in self.cohorts if member in c.members)

    def age(self, member: int) -> int:
        """Frames that a sub-environment's state has generated."""
        return self.find(member)[0].age

    def since_refresh(self, member: int) -> int:
        """Frames that were generated since the last context refresh."""
        age = self.age(member)
        return self._model.plan(age)[-1] if age else 0

    def step(self, actions: np.ndarray, moving: Sequence[int]) -> dict[int, np.ndarray]:
        """The next frame, uint8 [V, H, W, 3], of the sub-environments that move.

        Args:
            actions: float32 [n, A], by number of sub-environment.
            moving: members of whole cohorts: those of a cohort move together.
        """
        frames: dict[int, np.ndarray] = {}
        for cohort in self.cohorts:
            if not set(cohort.members) & set(moving):
                continue
            there = next(member for member in cohort.members if member != LEFT)
            # Rows that were left take any action.
            given = actions[[there if member == LEFT else member for member in cohort.members]]
            cohort.state = self._model.step(cohort.state, given[:, None])
            made = self._model.frames(cohort.state, cohort.age)[:, 0]
            cohort.age += 1
            frames |= {m: frame for m, frame in zip(cohort.members, made, strict=True) if m != LEFT}
        return frames

    def branched(self, members: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> Rows:
        """Rows that go on from chosen sub-environments: sub-environment k * n + i is the i-th copy of `members[k]`.

        Args:
            seeds: n per chosen one; they hold from the next frame on.
        """
        copies, made = len(seeds[0]), []
        for cohort in self.cohorts:
            places = [place for place, member in enumerate(members) if member in cohort.members]
            if places:
                rows = [cohort.members.index(members[place]) for place in places]
                state = self._model.branch(cohort.state, rows, [seeds[place] for place in places])
                numbers = [place * copies + copy for place in places for copy in range(copies)]
                made.append(Cohort(state, cohort.age, numbers))
        return Rows(self._model, made)
