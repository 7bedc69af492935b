"""Which class opens a folder, and where its tokenizer lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_job import make_tiny_job
from toy_world_model import ToyModel, write_toy

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model import registry
from roboalign_ray.world_model.protocol import Prompt
from roboalign_ray.world_model.registry import (
    Description,
    check_world_model,
    open_decoder,
    open_world_model,
    payload_type,
    read_description,
    read_weights,
    write_description,
)
from roboalign_ray.world_model.token.engine import RolloutEngine
from roboalign_ray.world_model.token.rollout import TokenPayload


@pytest.fixture
def job(tmp_path):
    return make_tiny_job(tmp_path)


def roll(model):
    start = np.zeros((32, 32, 3), np.uint8)
    return model.rollout([Prompt("p", start, start, np.zeros((2, 2)))], [(1,)])[0]


def test_a_folder_without_a_description_is_of_tokens_and_has_its_tokenizer_beside(job, tmp_path):
    folder = tmp_path / "world_model"
    assert read_description(folder) == Description("token", None, None)
    model = open_world_model(folder)
    assert isinstance(model, RolloutEngine)
    assert model.card.kind == "token"
    assert payload_type("token") is TokenPayload
    np.testing.assert_array_equal(open_decoder(folder).decode(roll(model)), model.decode(roll(model)))
    assert check_world_model(folder, config=job) == open_decoder(folder).card
    assert "lm_head.weight" in read_weights(folder)


def test_the_shipped_model_opens_by_its_name():
    assert check_world_model("shipped").kind == "token"


def test_a_folder_remembers_its_tokenizer_and_both_can_be_moved(job, tmp_path):
    apart = tmp_path / "runs" / "one"
    apart.mkdir(parents=True)
    shutil.copytree(tmp_path / "world_model", apart / "aligned")
    with pytest.raises(UserError, match="which tokenizer"):
        open_world_model(apart / "aligned")
    write_description(apart / "aligned", "token", tmp_path / "tokenizer", final=apart / "aligned")
    assert (
        json.loads((apart / "aligned" / "world_model.json").read_text())["tokenizer"] == "../../../tokenizer"
    )
    expected = roll(open_world_model(tmp_path / "world_model")).payload.tokens
    np.testing.assert_array_equal(roll(open_world_model(apart / "aligned")).payload.tokens, expected)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "runs", moved / "runs")
    shutil.move(tmp_path / "tokenizer", moved / "tokenizer")
    np.testing.assert_array_equal(roll(open_world_model(moved / "runs/one/aligned")).payload.tokens, expected)


def test_weights_of_another_tokenizer_of_the_same_shape_are_refused(job, tmp_path):
    write_description(tmp_path / "world_model", "token", tmp_path / "tokenizer")
    torch.manual_seed(1)
    DualBranchTokenizer(job.tokenizer).save(tmp_path / "other")
    for opening in (open_world_model, open_decoder, check_world_model):
        opening(tmp_path / "world_model", tokenizer=tmp_path / "tokenizer")
        with pytest.raises(UserError, match="another tokenizer"):
            opening(tmp_path / "world_model", tokenizer=tmp_path / "other")


def test_the_shipped_tokenizer_is_remembered_by_name(job, tmp_path):
    import roboalign_ray

    shipped = Path(roboalign_ray.__file__).parent / "assets" / "tokenizer"
    write_description(tmp_path / "world_model", "token", shipped)
    assert read_description(tmp_path / "world_model").tokenizer == "shipped"


def test_a_decoder_needs_no_weights(job, tmp_path):
    (tmp_path / "world_model" / "model.safetensors").unlink()
    assert open_decoder(tmp_path / "world_model").card.height == 32
    with pytest.raises(UserError, match=r"model\.safetensors"):
        open_world_model(tmp_path / "world_model")


def test_a_user_may_name_a_class_and_a_file_may_not(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_named", {})
    write_toy(tmp_path / "toy")
    with pytest.raises(UserError, match="unknown world model 'toy'"):
        open_world_model(tmp_path / "toy")
    (tmp_path / "toy" / "world_model.json").write_text('{"kind": "toy_world_model:ToyKind"}')
    with pytest.raises(UserError):
        open_world_model(tmp_path / "toy")
    model = open_world_model(tmp_path / "toy", kind="toy_world_model:ToyKind")
    assert isinstance(model, ToyModel)
    assert payload_type("toy").kind == "toy"  # for files of this process


@pytest.mark.parametrize("text", ["[]", '{"kind": 3}', '{"tokenizer": 3}', "{"])
def test_a_damaged_description_is_one_line(job, tmp_path, text):
    (tmp_path / "world_model" / "world_model.json").write_text(text)
    with pytest.raises(UserError, match=r"world_model\.json"):
        open_world_model(tmp_path / "world_model")


def test_another_tokenizer_is_told(job, tmp_path):
    layout = json.loads((tmp_path / "world_model" / "layout.json").read_text())
    layout["dynamics_tokens"] += 1
    (tmp_path / "world_model" / "layout.json").write_text(json.dumps(layout))
    for opening in (open_world_model, open_decoder, check_world_model):
        with pytest.raises(UserError, match=r"layout|vocabulary"):
            opening(tmp_path / "world_model")
