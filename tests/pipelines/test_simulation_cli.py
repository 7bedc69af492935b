"""`roboalign simulate` as a person calls it."""

from __future__ import annotations

import json

import pytest

from roboalign_ray.pipelines.cli.main import run

TIMES = [
    "--set=asynchrony.staleness=0",
    "--set=alignment.prompts_per_update=4",
    "--set=alignment.minibatch_prompts=4",
    "--set=asynchrony.workload.rollout={seconds: 2.0, shape: constant}",
    "--set=asynchrony.workload.scorer.seconds=1.0",
    "--set=asynchrony.workload.learner.seconds=0.5",
    "--set=asynchrony.workload.weights_s=0",
    "--set=cluster.rollout.workers=4",
    "--set=cluster.scorer.workers=4",
]


def test_json(capsys):
    assert run(["simulate", "demo", *TIMES, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds_per_update"] == pytest.approx(2.0 + 1.0 + 4 * 0.5)
    assert found["utilisation"]["learner"] == pytest.approx(0.4)


def test_a_table_with_a_row_per_value(capsys):
    assert run(["simulate", "demo", *TIMES, "--sweep", "asynchrony.staleness=0,1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["asynchrony.staleness", "groups/s"]
    assert [(line[0], line[1]) for line in lines[1:]] == [("0", "0.8"), ("1", "1.6")]


def test_a_sweep_without_values_is_told(capsys):
    assert run(["simulate", "demo", "--sweep", "asynchrony.staleness"]) == 2
    assert "--sweep" in capsys.readouterr().err
