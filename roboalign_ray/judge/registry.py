"""Judges from outside this package, beside the student, measurement and the vision-language teacher.

class Mine:                                  named by entry point, or as my_pkg.judges:Mine; called without arguments
    def judge(self, requests): ...           a `Judgement` or `Failed` per `JudgeRequest`, in order
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roboalign_ray.foundation.failures import Failed, ReportedError, UserError, first_line, raise_if_host
from roboalign_ray.judge.protocol import (
    BROKEN,
    Judgement,
    JudgeRequest,
    TeacherJudge,
    judge_each,
)
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.plugins import Registry, lacks

# The three built-in ones need a job's folders and device, so the pipelines make them.
JUDGES: Registry[type[TeacherJudge]] = Registry("judges", "judge", {}, lacks("judge"))


class ExtensionJudge:
    """Implements `TeacherJudge` with a class from outside this package. What it raises costs one request its scores.

    Args:
        name: in `JUDGES`, or module:attribute; it is also what tables call the judge.
        where: the setting that the name stands in, for messages.

    Raises:
        UserError: no such class, or it cannot be made.
    """

    def __init__(self, name: str, where: str = "") -> None:
        self.name = name
        made = JUDGES.load(name, where)
        try:
            self._judge = made()
        except ReportedError:
            raise
        except Exception as error:
            raise_if_host(error, where=name)
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"the judge {name} cannot be made ({reason[:300]})", where=where) from error

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request, in order."""
        return judge_each(requests, self._judged)

    def _judged(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        outcomes = list(self._judge.judge(requests))
        if len(outcomes) != len(requests):
            raise ValueError(f"{len(outcomes)} judgements of {len(requests)} videos")
        return [self._checked(one) for one in outcomes]

    def _checked(self, outcome: Judgement | Failed) -> Judgement | Failed:
        if isinstance(outcome, Failed):
            return outcome
        if not isinstance(outcome, Judgement):
            return Failed(f"{self.name}: a judgement is of type {type(outcome).__name__}", BROKEN)
        if np.shape(outcome.scores) != (len(DIMENSIONS),) or not np.isfinite(outcome.scores).all():
            return Failed(f"{self.name}: the scores are not {len(DIMENSIONS)} finite numbers", BROKEN)
        return outcome
