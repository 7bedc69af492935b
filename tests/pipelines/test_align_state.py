"""The journal that a run leaves: cut to a checkpoint, whole lines only, and never at the cost of what is kept."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from pipelines.align_state import cut_journal
from roboalign_ray.foundation.readers import read_lines


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    whole = "".join(json.dumps({"update": update, "group": update}) + "\n" for update in range(4))
    path.write_text(whole + '{"update": 4, "gro')
    return path


def test_what_came_after_the_checkpoint_and_a_torn_line_are_cut(journal):
    assert [line["update"] for line in read_lines(journal, "journal line")] == [0, 1, 2, 3]
    cut_journal(journal, 2)
    assert journal.read_text() == '{"update": 0, "group": 0}\n{"update": 1, "group": 1}\n'


def test_a_full_disk_does_not_cost_the_lines_that_are_kept(journal, monkeypatch):
    before, write = journal.read_text(), Path.write_text

    def full(path, text, **more):
        write(path, text[:10], **more)
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        cut_journal(journal, 2)
    assert journal.read_text() == before
    assert list(journal.parent.iterdir()) == [journal]
