"""One toy run with stale groups, looked at from all sides: lines, trace, Ray's metrics page, replay."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from collections import defaultdict
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tiny_job import make_tiny_job

from roboalign_ray.alignment.records.journal import Verdict
from roboalign_ray.config import JobConfig
from roboalign_ray.foundation.telemetry.chrome_trace import read_trace
from roboalign_ray.pipelines.align.job import AlignResult, run_align
from roboalign_ray.pipelines.align.replay import run_replay
from roboalign_ray.pipelines.monitor.monitor import History
from roboalign_ray.pipelines.monitor.prometheus import RayMetrics, metrics_url

PAGE_S = 90  # Ray hands metrics on every ten seconds or so


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    roles = ("rollout", "scorer", "learner")
    patient = {name: {"num_cpus": 0.5, "threads": 1, "deadline_s": 400} for name in roles}
    patient["rollout"]["workers"] = 2
    return make_tiny_job(
        tmp_path_factory.mktemp("job"),
        asynchrony={"staleness": 1, "groups_per_call": 2},
        cluster={"object_store_gb": 0.2, **patient},
        name="watched",
    )


@pytest.fixture(scope="module")
def run(ray_cluster, job, tmp_path_factory) -> tuple[AlignResult, Path, str, dict[str, float]]:
    """The run, its folder, what it said on standard error, and the metrics page after it."""
    out, said = tmp_path_factory.mktemp("run") / "out", io.StringIO()
    with redirect_stderr(said):
        result = run_align(job, out)
    return result, out, said.getvalue(), page("watched", version=2)


def page(job: str, *, version: int) -> dict[str, float]:
    """Our series on Ray's metrics page, once it tells of a job's update, by name and labels of ours."""
    ends = time.monotonic() + PAGE_S
    while True:
        series = read_page()
        if series.get(f"ray_roboalign_version,job={job}") == version:
            return series
        assert time.monotonic() < ends
        time.sleep(1)


def read_page() -> dict[str, float]:
    """As Prometheus reads it."""
    text, found = urllib.request.urlopen(metrics_url(), timeout=30).read().decode(), {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_roboalign_"):
                labels = [f"{k}={v}" for k, v in sorted(sample.labels.items()) if k in ("job", "kind", "age")]
                found[",".join([sample.name, *labels])] = sample.value
    return found


def journal(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]


def test_where_there_is_no_terminal_lines_tell_of_progress(run):
    lines = run[2].splitlines()
    assert lines[-1].startswith("align: 2/2 updates")
    assert "held out" in lines[-1]


def test_the_trace_shows_every_call_update_evaluation_and_checkpoint(run, job):
    events = read_trace(run[1] / "logs" / "trace.json")
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    spans = [event for event in events if event["ph"] == "X"]
    lanes = defaultdict(list)
    for span in spans:
        lanes[span["pid"], span["tid"]].append((span["ts"], span["ts"] + span["dur"]))
    for times in lanes.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(times)))

    def named(name):
        return [span for span in spans if span["name"] == name]

    trained = [g for s in named("rollout") if "held_out" not in s["args"] for g in s["args"]["groups"]]
    assert set(trained) >= {line["group"] for line in journal(run[1])}
    assert {span["args"]["version"] for span in named("rollout")} <= {0, 1, 2}
    assert {processes[span["pid"]] for span in named("score")} == {"scorer"}
    for update in range(2):
        [span], [weights] = named(f"update {update}"), named(f"weights {update + 1}")
        assert span["ts"] + span["dur"] == weights["ts"]
        groups = [line["group"] for line in journal(run[1]) if line["update"] == update]
        assert span["args"]["groups"] == groups
    assert [s["args"]["version"] for s in named("evaluation")] == [0, 1, 2]
    assert [s["args"]["version"] for s in named("checkpoint")] == [1, 2]


def test_the_metrics_page_has_the_last_updates_scalars(run):
    result, _, _, series = run
    for name in ("reward_mean", "reward_ssim", "reference_kl", "grad_norm", "held_out/reward_mean"):
        metric = f"ray_roboalign_{name.replace('/', '_')},job=watched"
        assert series[metric] == pytest.approx(result.curves[name][1][-1], rel=1e-6, abs=1e-12), name
    assert series["ray_roboalign_version,job=watched"] == 2
    assert series["ray_roboalign_samples_total,job=watched"] == 24
    ages = {key: value for key, value in series.items() if key.startswith("ray_roboalign_staleness,")}
    assert sum(ages.values()) == pytest.approx(1)


def test_counts_add_up_and_ages_that_are_gone_are_zero(ray_cluster, run):
    metrics = RayMetrics("by hand")
    metrics.scalars(
        1, {"failures/worker_lost": 2.0, "staleness/0": 0.5, "staleness/1": 0.5, "kl": float("nan")}
    )
    metrics.scalars(2, {"failures/worker_lost": 1.0, "staleness/0": 1.0, "last": 7.0})
    series = page("by hand", version=2)
    assert series["ray_roboalign_failures_total,job=by hand,kind=worker_lost"] == 3
    assert series["ray_roboalign_staleness,age=0,job=by hand"] == 1
    assert series["ray_roboalign_staleness,age=1,job=by hand"] == 0
    assert series["ray_roboalign_version,job=by hand"] == 2
    assert not any("roboalign_kl,job=by hand" in key for key in series)


def test_the_journal_names_the_groups_that_were_rolled_out_together(run):
    for line in journal(run[1]):
        assert line["group"] in line["together"]
        assert len(line["together"]) <= 2


def test_every_group_is_made_again_bit_for_bit(run, job):
    result = run_replay(job, run[1], quiet=True)
    assert [c.verdict for c in result.compared] == [Verdict.EQUAL] * 8
    assert result.equal
    assert sum(row["groups"] for row in result.rows()) == 8
    assert len(run_replay(job, run[1], groups=1, quiet=True).compared) <= 2


def test_a_history_is_bounded_and_takes_up_what_was_written():
    history = History(3)
    for step in range(5):
        history.learn(
            {"step": step, "time": 1.0, "reward_mean": float(step), "failures/hung": 1.0, "kl": None}
        )
    assert list(history.curves["reward_mean"]) == [2.0, 3.0, 4.0]
    assert history.failures == {"hung": 5}
    assert history.curves.keys() == {"reward_mean", "failures/hung", "kl"}
    history.learn({"judge/alarms": 2.0})
    assert history.alarms == {"judge/alarms": 2.0}
    history.learn({"judge/alarms": 0.0})
    assert history.alarms == {}
