"""Re-distillation: what is published when, the same after a restart, and better by the fresh labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from judged_job import toy_pairs, trained_student

from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.pairs import encode_pair, write_pairs
from roboalign_ray.judge.online import redistillation
from roboalign_ray.judge.online.redistillation import Published, Redistiller
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.validation.assessment import try_student
from roboalign_ray.judge.validation.gate import GateResult


@pytest.fixture(scope="module")
def material(tmp_path_factory, judged_config):
    folder = tmp_path_factory.mktemp("judge")
    write_pairs(toy_pairs(), folder / "pairs", held_out_fraction=0.3)
    trained_student(judged_config).save(folder / "student")
    return folder


@pytest.fixture(scope="module")
def judged_config() -> JobConfig:
    from judged_job import judge_section

    return JobConfig.model_validate({"judge": judge_section()})


def grey_clips(count: int):
    """Clips that no replayed pair is like, at no marks: what the student must learn from fresh labels."""
    pairs = toy_pairs()
    for number in range(count):
        frames = np.full_like(pairs[0].frames, 120 + number)
        yield replace(
            pairs[0],
            pair_id=f"rollout/fresh/{number}",
            frames=frames,
            scores=np.zeros(6, np.float32),
            annotator="teacher",
            kind="rollout/fresh",
        )


def keeper(material, config: JobConfig, run) -> Redistiller:
    return Redistiller(config.judge, run, material / "student", material / "pairs")


def test_a_round_teaches_what_its_labels_say_and_is_published_once(material, judged_config, tmp_path):
    relabel = judged_config.judge.relabel.model_copy(update={"steps": 100, "learning_rate": 2e-3})
    judge = judged_config.judge.model_copy(update={"relabel": relabel})
    config = judged_config.model_copy(update={"judge": judge})
    run = keeper(material, config, tmp_path)
    first = run.begin()
    assert first.version == 1
    fresh = list(grey_clips(8))
    ids = [pair.pair_id for pair in fresh]
    assert run.known(ids) == {}
    assert run.keep(1, [encode_pair(pair) for pair in fresh]) == 8
    assert run.keep(1, [encode_pair(pair) for pair in fresh]) == 0
    known = run.known([*ids, "other"])
    assert {name: scores.tolist() for name, scores in known.items()} == {
        pair.pair_id: pair.scores.tolist() for pair in fresh
    }
    second = run.relabel(1, 1, ids)
    assert isinstance(second, Published)
    assert second.version == 2
    assert run.passes > 100 + 2  # besides training, calibration and trials are signs of life

    def error(student: Student) -> float:
        judged = student.score([pair.frames for pair in fresh], [pair.instruction for pair in fresh])
        return float(judged.scores.mean())

    assert error(run.registry.load(2)) < 0.5 * error(run.registry.load(1))
    # A restart in the middle of it: nothing is trained or published again.
    again = keeper(material, config, tmp_path)
    assert again.begin().version == 1
    told = again.relabel(1, 1, list(reversed(ids)))
    assert isinstance(told, Published)
    assert (told.version, again.registry.newest(), again.passes) == (2, 2, 0)
    assert told.files == second.files


def test_a_version_kept_elsewhere_is_taken_in_and_no_other_put_in_its_place(
    material, judged_config, tmp_path
):
    first = keeper(material, judged_config, tmp_path / "first")
    published = first.begin()
    second = keeper(material, judged_config, tmp_path / "second")
    assert second.version(1, published.files).files == published.files
    assert second.version(1, published.files).gate.open
    with pytest.raises(UserError, match="those of student version 1, not 2"):
        second.version(2, published.files)
    other = {**published.files, "manifest.json": b"{}"}
    with pytest.raises(UserError, match="version 1 is another one here"):
        second.version(1, other)
    with pytest.raises(UserError, match="not a checkpoint's manifest"):
        keeper(material, judged_config, tmp_path / "third").version(1, other)


def test_the_same_labels_make_the_same_student(material, judged_config, tmp_path):
    states = []
    for name in ("a", "b"):
        run = keeper(material, judged_config, tmp_path / name)
        run.begin()
        fresh = list(grey_clips(4))
        run.keep(1, fresh_rows(fresh))
        torch.manual_seed(len(states))  # the state outside does not matter
        run.relabel(1, 1, [pair.pair_id for pair in fresh])
        states.append(run.registry.load(2).state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def fresh_rows(pairs):
    return [encode_pair(pair) for pair in pairs]


def test_a_student_that_fails_the_gate_is_not_published(material, judged_config, tmp_path, monkeypatch):
    """Labels that praise noise: the student would unlearn what the gate asks for."""
    monkeypatch.setattr(redistillation, "_SHARES", (1.0,))  # a part of the step may leave it able
    relabel = judged_config.judge.relabel.model_copy(update={"steps": 100, "learning_rate": 3e-3})
    # Nothing but what the labels say: fresh spoiled examples would tell it better, and calibration on sound labels
    # stretches what is left of a difference.
    alone = {"replay_ratio": 0.0, "spoiled": 0.0, "asked_else": 0.0, "calibration": "none"}
    distillation = judged_config.judge.distillation.model_copy(update=alone)
    judge = judged_config.judge.model_copy(update={"relabel": relabel, "distillation": distillation})
    run = keeper(material, judged_config.model_copy(update={"judge": judge}), tmp_path)
    run.begin()
    noise = [
        replace(pair, pair_id=f"{pair.pair_id}/praised", scores=maxima().astype(np.float32))
        for pair in toy_pairs()
    ]
    run.keep(1, fresh_rows(noise))
    outcome = run.relabel(1, 1, [pair.pair_id for pair in noise])
    assert isinstance(outcome, GateResult)
    assert not outcome.open
    assert run.registry.newest() == 1


def test_half_of_a_step_is_taken_where_all_of_it_fails(material, judged_config, tmp_path, monkeypatch):
    fresh = list(grey_clips(4))
    ids = [pair.pair_id for pair in fresh]

    def relabelled(folder) -> tuple[Redistiller, Published | GateResult]:
        run = keeper(material, judged_config, folder)
        run.begin()
        run.keep(1, fresh_rows(fresh))
        return run, run.relabel(1, 1, ids)

    whole, taken = relabelled(tmp_path / "whole")
    assert isinstance(taken, Published)
    assert taken.figures["share"] == 1
    tries = []

    def strict(student, *rest):
        gate = try_student(student, *rest)
        tries.append(gate)
        closed = replace(gate, rows=tuple(replace(row, passed=False) for row in gate.rows))
        return closed if len(tries) == 2 else gate  # the first one is that of the student it begins with

    monkeypatch.setattr(redistillation, "try_student", strict)
    half, taken = relabelled(tmp_path / "half")
    assert isinstance(taken, Published)
    assert (taken.figures["share"], len(tries)) == (0.5, 3)
    first, last = (whole.registry.load(version).state_dict() for version in (1, 2))
    for name, value in half.registry.load(2).state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.lerp(first[name], last[name], 0.5))


def test_a_student_that_fails_the_gate_cannot_begin(material, judged_config, tmp_path):
    gate = judged_config.judge.gate.model_copy(update={"trials": ("reverse",)})
    judge = judged_config.judge.model_copy(update={"gate": gate})
    run = keeper(material, judged_config.model_copy(update={"judge": judge}), tmp_path)
    with pytest.raises(UserError, match="the reward gate is closed"):
        run.begin()
    assert run.registry.newest() is None
