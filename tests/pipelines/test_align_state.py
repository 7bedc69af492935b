"""The journal that a run leaves: cut to a checkpoint, whole lines only, and never at the cost of what is kept."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.checkpoints import Checkpoint, CheckpointError
from roboalign_ray.foundation.storage.readers import read_lines
from roboalign_ray.pipelines.align.journal_files import cut_journal
from roboalign_ray.pipelines.align.run_state import COUNTED, restore


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


def test_a_journal_line_without_a_number_is_one_line(journal):
    before = '{"update": 0}\n{"update": "one"}\n'
    journal.write_text(before)
    with pytest.raises(UserError, match="'update' is 'one', not int"):
        cut_journal(journal, 2)
    assert journal.read_text() == before


class RestingLearner:
    """Answers what `restore` asks of a learner; its state is of update 3."""

    def ask(self, _what, _folder):
        return [3]

    def ask_first(self, _what, *_arguments, returns):
        return SimpleNamespace(values=[None] * (returns - 1), answer=[])

    def publish(self):
        return None


@pytest.mark.parametrize(
    "wrong",
    [
        {"counts": {}},
        {"counts": dict.fromkeys(COUNTED, "many")},
        {"counts": [1]},
        {"row": "text"},
        {"row": {"loss": "low"}},
        {"finished_groups": "x"},
        {"loop": None},
    ],
    ids=str,
)
def test_accounts_of_the_wrong_type_are_one_line(wrong, tmp_path):
    """A checkpoint may be anybody's, with right checksums; as it stands it is taken up."""

    def taken_up(state, _unpack):
        state["version"]

    crew = SimpleNamespace(learner=RestingLearner(), judge=None)
    loop = SimpleNamespace(load_state_dict=taken_up, weights=None)
    sound = {
        "loop": {"version": 3},
        "finished_groups": 0,
        "counts": dict.fromkeys(COUNTED, 1),
        "row": {"loss": 0.5},
    }
    assert restore(Checkpoint(tmp_path, 3, sound), crew, loop) == (sound["counts"], sound["row"])
    with pytest.raises(CheckpointError, match="accounts cannot be taken up"):
        restore(Checkpoint(tmp_path, 3, sound | wrong), crew, loop)
