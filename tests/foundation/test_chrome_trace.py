"""What a trace holds is what was told to it, however its writer ended; read back with Python's own JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.foundation.telemetry.chrome_trace import TraceFile, previous, read_trace


def timed(events):
    return [event for event in events if event["ph"] != "M"]


def test_a_closed_trace_is_plain_json_in_chromes_format(tmp_path):
    path = tmp_path / "logs" / "trace.json"
    before = time.time()
    with TraceFile(path, 100) as trace:
        trace.lane(3, 1, "rollout", "rollout 1")
        now = time.monotonic()
        trace.span("rollout", (3, 1), now, now + 0.25, kind="call", about={"groups": [4, 5], "version": 2})
        trace.instant("lost", (3, 1), now + 0.25, about={"why": "killed"})
    events = json.loads(path.read_text())
    assert events == read_trace(path)
    assert [e["name"] for e in events] == [
        "process_name",
        "process_sort_index",
        "thread_name",
        "rollout",
        "lost",
    ]
    span, lost = timed(events)
    assert {"ph": "X", "pid": 3, "tid": 1, "cat": "call", "dur": 250_000}.items() <= span.items()
    assert span["args"] == {"groups": [4, 5], "version": 2}
    assert (lost["ph"], lost["s"], lost["ts"]) == ("i", "t", span["ts"] + 250_000)
    assert abs(span["ts"] / 1e6 - before) < 60
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid", "args"} <= event.keys()
        assert all(isinstance(event[key], int) for key in ("ts", "pid", "tid"))


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=2, max_size=20))
def test_what_follows_without_a_gap_does_so_in_the_file(tmp_path_factory, moments):
    moments = sorted(moments)
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with TraceFile(path, 100) as trace:
        for began, ended in pairwise(moments):
            trace.span("work", (1, 1), began, ended)
    spans = timed(read_trace(path))
    assert all(a["ts"] + a["dur"] == b["ts"] for a, b in pairwise(spans))
    for span, began, ended in zip(spans, moments, moments[1:], strict=False):
        assert abs(span["dur"] - 1e6 * (ended - began)) <= 1


def test_a_resumed_trace_goes_on_in_the_same_file(tmp_path):
    path = tmp_path / "trace.json"
    for number in range(3):
        with TraceFile(path, 100) as trace:
            trace.lane(1, 1, "job", "updates")
            trace.span(f"run {number}", (1, 1), 0.0, 1.0)
    assert [e["name"] for e in timed(json.loads(path.read_text()))] == ["run 0", "run 1", "run 2"]


@pytest.mark.parametrize("tail", ["", ",\n", ',\n{"name": "to', '{"na', "]"])
def test_a_torn_end_is_left_out_and_written_over(tmp_path, tail):
    path = tmp_path / "trace.json"
    event = {"name": "whole", "ph": "X", "ts": 0, "dur": 1, "pid": 1, "tid": 1, "args": {}}
    torn = tail if tail.startswith(",") else f",\n{tail}" if tail.startswith("{") else f"\n{tail}"
    path.write_text(f"[\n{json.dumps(event)}{torn}")
    assert [e["name"] for e in read_trace(path)] == ["whole"]
    with TraceFile(path, 100) as trace:
        trace.span("after", (1, 1), 0.0, 1.0)
    assert [e["name"] for e in json.loads(path.read_text())] == ["whole", "after"]


def test_a_full_file_is_kept_once_and_another_begins_with_the_lanes_names(tmp_path):
    path = tmp_path / "trace.json"
    with TraceFile(path, 10) as trace:
        trace.lane(1, 1, "job", "updates")
        for number in range(35):
            trace.span(str(number), (1, 1), number, number + 1)
    here, before = json.loads(path.read_text()), json.loads(previous(path).read_text())
    assert [e["name"] for e in timed(before)] == [str(n) for n in range(20, 30)]
    assert [e["name"] for e in timed(here)] == [str(n) for n in range(30, 35)]
    for events in (here, before):
        assert {"process_name", "thread_name"} <= {e["name"] for e in events if e["ph"] == "M"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trace.1.json", "trace.json"]
    with TraceFile(path, 10) as trace:  # what is there counts
        for number in range(6):
            trace.span("more", (1, 1), number, number + 1)
    assert len(timed(read_trace(path))) == 1


KILLED = """
import sys, time
from pathlib import Path
from roboalign_ray.foundation.telemetry.chrome_trace import TraceFile
trace = TraceFile(Path(sys.argv[1]), 1_000_000)
for number in range(10**9):
    trace.span("work", (1, 1), number, number + 1, about={"groups": list(range(20))})
    if number % 100 == 0:
        trace.flush()
"""


def test_a_killed_writer_leaves_a_file_that_loads(tmp_path):
    path = tmp_path / "trace.json"
    process = subprocess.Popen([sys.executable, "-c", KILLED, path])
    ends = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 100_000):
        assert time.monotonic() < ends
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    text = path.read_text()
    assert not text.endswith("]\n")
    events = json.loads(text + "]")  # all that is missing is the bracket
    assert [event["ts"] - events[0]["ts"] for event in events] == [n * 1_000_000 for n in range(len(events))]


QUOTA = """
import resource, sys
from pathlib import Path
from roboalign_ray.foundation.telemetry.chrome_trace import TraceFile
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with TraceFile(Path(sys.argv[1]), 1000) as trace:
    for number in range(100):
        trace.span("work", (1, 1), number, number + 1)
        trace.flush()
print("went on")
"""


def test_a_full_disk_ends_the_trace_and_nothing_else(tmp_path):
    path = tmp_path / "trace.json"
    done = subprocess.run([sys.executable, "-c", QUOTA, path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n"
    assert done.stderr.count("no more can be written") == 1
    assert 5 < len(read_trace(path)) < 100
