"""Judges from outside this package: what they answer, and what becomes of answers that are no judgements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.protocol import Judgement, JudgeRequest
from roboalign_ray.judge.registry import ExtensionJudge

MODULE = """
import numpy as np
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.protocol import Judgement


def said(level):
    scores = np.full(6, float(level))
    return Judgement(scores, np.zeros(6), scores[None], "bright")


class Bright:
    def judge(self, requests):
        return [said(request.frames.mean() / 255) for request in requests]


class Picky:
    def judge(self, requests):
        answers = {"fails": Failed("unreadable", "parse"), "text": "good", "nan": said("nan")}
        if any(request.instruction == "raises" for request in requests):
            raise KeyError("gripper")
        return [answers.get(request.instruction, said(1)) for request in requests]


class Short:
    def judge(self, requests):
        return []


class Broken:
    def __init__(self):
        raise OSError("the weights are not there")

    def judge(self, requests): ...


class Deaf: ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"outside_judges_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def request(level: int = 51, instruction: str = "push it") -> JudgeRequest:
    return JudgeRequest(np.full((4, 16, 16, 3), level, np.uint8), 5.0, instruction)


def test_its_judgements_come_back_in_order(module: str) -> None:
    judge = ExtensionJudge(f"{module}:Bright")
    told = judge.judge([request(51), request(102), request(255)])
    assert [one.total for one in told if isinstance(one, Judgement)] == pytest.approx([1.2, 2.4, 6.0])
    assert judge.name == f"{module}:Bright"


def test_one_requests_fault_is_its_own(module: str) -> None:
    words = ["push it", "fails", "text", "nan", "raises", " "]
    fine, *bad = ExtensionJudge(f"{module}:Picky").judge([request(51, word) for word in words])
    assert isinstance(fine, Judgement)
    assert all(isinstance(one, Failed) for one in bad)
    assert [one.kind for one in bad] == ["parse", "teacher", "teacher", "teacher", "input"]
    assert "of type str" in bad[1].reason
    assert "6 finite numbers" in bad[2].reason
    assert "KeyError: 'gripper'" in bad[3].reason
    [short] = ExtensionJudge(f"{module}:Short").judge([request()])
    assert isinstance(short, Failed)
    assert "0 judgements of 1 videos" in short.reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Broken", "cannot be made (OSError: the weights are not there)"),
        ("Deaf", "is no judge: it has no method judge"),
        ("Brigt", "did you mean 'Bright'?"),
    ],
)
def test_what_cannot_judge_is_one_line(name: str, expected: str, module: str) -> None:
    with pytest.raises(UserError) as caught:
        ExtensionJudge(f"{module}:{name}", "evaluation.judges")
    assert expected in caught.value.line()
    assert caught.value.line().startswith("evaluation.judges: ")


def test_a_profile_names_it() -> None:
    judges = ("student", "my_pkg.judges:Mine")
    assert load_job("demo", [f"evaluation.judges=[{', '.join(judges)}]"]).evaluation.judges == judges
    with pytest.raises(
        UserError, match=r"evaluation\.judges: unknown judge 'studnet'; did you mean 'student'"
    ):
        load_job("demo", ["evaluation.judges=[studnet]"])
