"""Toy jobs with injected faults, each kind at least once: every promise is kept, and all faults are recorded."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from align_kinds import AlignKind, kind_asked_for, of_kinds
from refusals import refused

from roboalign_ray.config.loading import dump_yaml
from roboalign_ray.pipelines.chaos import job as chaos
from roboalign_ray.pipelines.cli.main import run

RESTARTS = {"threads": 1, "num_cpus": 0.25, "max_restarts": 100, "deadline_s": 120}


@pytest.fixture(scope="module")
def kind(request) -> AlignKind:
    return kind_asked_for(request)


@pytest.fixture(scope="module")
def profile(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    job = kind.make(
        folder,
        alignment={"updates": 6, "evaluate_every": 6, "checkpoint_every": 1},
        asynchrony={
            "staleness": 1,
            "groups_per_call": 1,
            "tries": 20,
            "off_policy": {"correction": kind.correction},
            "liveness": {"every_s": 1, "silence_s": 10},
        },
        cluster={
            "rollout": {"workers": 2, **RESTARTS},
            "scorer": {"workers": 2, **RESTARTS},
            "learner": RESTARTS,
        },
    )
    (folder / "tiny.yaml").write_text(dump_yaml(job))
    return str(folder / "tiny.yaml")


def run_chaos_job(out, *words: str) -> dict:
    code = run(["chaos", *words, "--out", str(out), "--quiet", "--json"])
    told = json.loads((out / "chaos.json").read_text())
    assert told["holds"], (out / "chaos.md").read_text()
    assert code == 0
    return told


@pytest.mark.chaos
@of_kinds()
def test_a_job_keeps_its_promises_whatever_fault_is_injected(profile, tmp_path):
    told = run_chaos_job(tmp_path / "out", profile, "--kills", "1")
    assert {injection["kind"] for injection in told["strikes"]} == {
        *(
            "rollout",
            "scorer",
            "learner",
            "checkpoint",
            "hang",
            "weights",
            "tokens",
            "scores",
            "quota",
            "journal",
        )
    }
    assert told["lost_groups"] == told["groups_trained_twice"] == []


@pytest.mark.slow
@pytest.mark.chaos
def test_a_job_keeps_its_promises_when_a_node_is_removed_and_another_added(profile, tmp_path):
    told = run_chaos_job(tmp_path / "out", profile, "--nodes", "3", "--fault", "node:1")
    [injection] = told["strikes"]
    assert injection["replaced"] >= 1


def test_a_run_that_is_stopped_by_hand_still_reports_its_faults(profile, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(chaos, "run_align", stopped)
    monkeypatch.setattr(chaos, "chaos_cluster", lambda *_: nullcontext())
    out = tmp_path / "out"
    assert run(["chaos", profile, "--out", str(out), "--quiet"]) == 1
    assert "interrupted by the user" in (out / "chaos.md").read_text()


def test_an_unknown_fault_and_a_folder_that_is_taken_are_refused(profile, tmp_path, capsys):
    new = ["--out", str(tmp_path / "new")]
    line = refused(["chaos", profile, "--fault", "meteor", *new], tmp_path, capsys)
    assert "unknown fault 'meteor'; one of rollout, scorer," in line
    (tmp_path / "rollouts.jsonl").write_text("")
    line = refused(["chaos", profile, "--out", str(tmp_path)], tmp_path, capsys)
    assert "holds a run already; choose another folder" in line
    line = refused(["chaos", profile, "--set", "cluster.address=auto", *new], tmp_path, capsys)
    assert "no faults are injected into the cluster 'auto'; use 'local'" in line
    line = refused(["chaos", profile, "--kills", "0", *new], tmp_path, capsys)
    assert "--kills" in line
