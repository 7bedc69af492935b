"""What the driver does about the judge, turn by turn: workers are asked by hand here, and answer when told to.

Whole jobs with a judge are in test_align_judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from judged_job import judge_section

from roboalign_ray.actors.annotator import AnnotationRecord
from roboalign_ray.actors.distiller import StudentRecord
from roboalign_ray.alignment.records.scored import GroupRecord
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.rubric import maxima, names
from roboalign_ray.judge.validation.gate import GateResult
from roboalign_ray.pipelines.align.groups import Finished
from roboalign_ray.pipelines.align.online_judge import OnlineJudge, StudentVersion
from roboalign_ray.pipelines.align.sample_selection import spread_samples
from roboalign_ray.pipelines.cluster.runtime import RoleFailure
from roboalign_ray.rewards.protocol import Scored

GATE = GateResult("student", (), 0.25)


@dataclass
class Pool:
    """A worker that takes whatever it is given."""

    worker: Any = field(default_factory=lambda: SimpleNamespace(actor=object()))

    def free(self) -> Any:
        return self.worker


@dataclass
class Workforce:
    """Keeps calls until the test answers them."""

    calls: list[tuple[str, tuple, dict]] = field(default_factory=list)

    def send(self, worker: Any, method: str, *arguments: Any, **how: Any) -> None:
        self.calls.append((method, arguments, how))

    def answer(self, method: str, answer: Callable[[tuple], Any] | Any, values: tuple = ("files",)) -> None:
        """The oldest waiting call of a method."""
        place = next(n for n, call in enumerate(self.calls) if call[0] == method)
        _, arguments, how = self.calls.pop(place)
        told = answer(arguments) if callable(answer) else answer
        how["then"](SimpleNamespace(values=values), told)

    def waiting(self) -> list[str]:
        return [method for method, _, _ in self.calls]


def group(number: int, version: int = 1, samples: int = 2, share: float = 0.5) -> Finished:
    components = dict(zip(names(), (share * maxima()).tolist(), strict=True))
    scores = tuple(Scored(10 * share, components, version) for _ in range(samples))
    record = GroupRecord(f"e{number}@0+4", tuple(range(samples)), (0,), scores, 8, 0.1)
    return Finished(f"group {number}", record)


def labels(share: float) -> Callable[[tuple], list[AnnotationRecord]]:
    """A teacher that gives every sample of a call that share of full marks."""

    def answer(arguments: tuple) -> list[AnnotationRecord]:
        [places], reference = arguments
        number = reference.split()[1]
        return [
            AnnotationRecord(f"rollout/fresh/e{number}@0+4/{n}/v0", share * maxima(), 1.0, None)
            for n in places
        ]

    return answer


def judge_with(**relabel: Any) -> tuple[OnlineJudge, Workforce, Pool]:
    section = judge_section()
    section["relabel"] |= {"audit_every": 1, "every": 0, "least": 1, **relabel}
    workforce, distillers = Workforce(), Pool()
    online: Any = OnlineJudge(JobConfig.model_validate({"judge": section}), workforce, Pool(), distillers)  # type: ignore[arg-type]
    online.student, online._holder = StudentVersion(1, ["first"]), distillers.worker.actor
    return online, workforce, distillers


def audits(online: OnlineJudge) -> list[tuple[str, int, float]]:
    return [
        (event["of"], event["version"], event[f"{event['of']}/teacher_total"])
        for event in online.take_events()
        if event["event"] == "audit"
    ]


def test_held_out_samples_wait_for_the_teacher_and_are_not_dropped() -> None:
    online, workforce, _ = judge_with()
    online.observe(1, [group(0), group(1)])
    waits = online.audit(1, [group(8), group(9)])
    online.work()
    assert workforce.waiting() == ["annotate"] * 2
    for _ in range(2):
        workforce.answer("annotate", labels(0.2))
    assert audits(online) == [("judge", 1, pytest.approx(2.0))]
    assert waits()
    assert not online.busy
    online.work()
    for _ in range(2):
        workforce.answer("annotate", labels(0.7))
    assert audits(online) == [("held_out", 1, pytest.approx(7.0))]
    assert not waits()


def test_an_audit_judges_the_student_that_rewards_now() -> None:
    online, workforce, _ = judge_with(audit_every=2)
    online.student = StudentVersion(2, ["second"])
    online.observe(2, [group(0, version=1), group(1, version=1)])
    assert not online.busy  # all scored by the one before: nothing to learn of this one
    online.observe(3, [group(2, version=1), group(3, version=2)])
    online.work()
    workforce.answer("annotate", labels(0.5))
    assert workforce.waiting() == []
    assert audits(online) == [("judge", 2, pytest.approx(5.0))]
    online.observe(4, [group(4, version=2)])
    assert not online.busy
    samples = spread_samples([group(0, version=1), group(1, version=2)], 8)
    assert [sample.version for sample in samples] == [1, 1, 2, 2]


def test_where_the_student_could_score_nothing_nothing_is_compared() -> None:
    online, workforce, _ = judge_with()
    record = GroupRecord("e0@0+4", (0, 1), (0,), (Failed("no instruction"),) * 2, 8, 0.1)
    assert not online.audit(0, [Finished("group 0", record)])()
    online.observe(1, [Finished("group 0", record)])
    assert not online.busy
    assert workforce.waiting() == []
    assert online.take_events() == []


def test_another_distiller_is_asked_for_the_students_files() -> None:
    online, workforce, distillers = judge_with()
    online.work()
    assert workforce.waiting() == []
    distillers.worker = SimpleNamespace(actor=object())
    online.work()
    online.work()
    assert workforce.calls[0][:2] == ("version", (1,))
    assert workforce.waiting() == ["version"]
    workforce.answer("version", Failed("lost on the way"))
    assert online.student == StudentVersion(1, ["first"])
    online.work()
    workforce.answer("version", StudentRecord(1, GATE, {}), ("again",))
    assert online.student == StudentVersion(1, ["again"])
    online.work()
    assert workforce.waiting() == []


def test_a_distiller_that_never_gives_them_ends_the_run() -> None:
    online, workforce, distillers = judge_with(patience=2)
    distillers.worker = SimpleNamespace(actor=object())
    online.work()
    workforce.answer("version", Failed("stale mount"))
    online.work()
    with pytest.raises(RoleFailure, match="cannot be had again: stale mount"):
        workforce.answer("version", Failed("stale mount"))


def test_an_evaluation_gone_through_again_is_told_once() -> None:
    online, workforce, _ = judge_with()
    for share in (0.2, 0.6):
        online.audit(4, [group(8)])
        online.work()
        workforce.answer("annotate", labels(share))
    assert audits(online) == [("held_out", 1, pytest.approx(6.0))]


@pytest.mark.parametrize("published", [1, 2])
def test_labels_that_are_there_are_audited_as_those_that_come(published: int) -> None:
    """What a relabelling on the interval's end labels was scored by the student then, whoever scores now."""
    online, workforce, _ = judge_with(every=2, audit_every=0)
    online.student = StudentVersion(published, ["newest"])
    online.observe(1, [group(0)])
    online.observe(2, [group(1), group(2)])
    online.work()
    workforce.answer(
        "known", {f"rollout/fresh/e{n}@0+4/{seed}/v0": 0.3 * maxima() for n in (1, 2) for seed in (0, 1)}
    )
    assert audits(online) == [("judge", 1, pytest.approx(3.0))]
    online.work()
    assert workforce.waiting() == ["relabel"]


def test_what_was_not_told_yet_is_kept_and_what_is_taken_back_is_not() -> None:
    online, workforce, _ = judge_with()
    online.observe(1, [group(0, share=1.0)])
    online.work()
    workforce.answer("annotate", labels(0.1))
    kept = online.state_dict()
    assert [event["event"] for event in kept["events"]] == ["audit", "alarm"]  # far above its teacher
    assert kept["scalars"]["judge/alarms"] == 1
    online._reset()
    assert online.state_dict()["events"] == []
    assert online.take_scalars() == {"judge/version": 1.0}
    np.testing.assert_allclose(kept["alarms"]["history"][0]["teacher"], 0.1)
