"""What a report says of a judge's run: who labelled, what came of it, and which alarms there were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roboalign_ray.pipelines.evaluate.judge_panel import event_lines

GATE = {"rows": [{"gap": 0.5}, {"gap": 0.264}]}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {"event": "relabelled", "update": 3, "round": 1, "cause": "rank", "version": 2, "gate": GATE},
            "After update 3: relabelled (VLM teacher, round 1, rank); student version 2 passed the gate, "
            "smallest gap 26%.",
        ),
        (
            {"event": "relabelling failed", "update": 6, "round": 2, "message": "the gate is closed"},
            "After update 6: relabelling round 2 failed (the gate is closed); the previous student stays in use.",
        ),
        (
            {"event": "alarm", "update": 6, "kind": "motion", "message": "rollouts move 20% as much"},
            "After update 6: alarm (motion): rollouts move 20% as much.",
        ),
    ],
)
def test_events_in_words(event: dict[str, object], line: str, tmp_path: Path) -> None:
    audit = {"event": "audit", "of": "judge", "update": 2}
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(told) + "\n" for told in (audit, event)))
    assert event_lines(path, "VLM teacher") == [line]


def test_no_judge_has_no_events(tmp_path: Path) -> None:
    assert event_lines(tmp_path / "absent.jsonl", "") == []
