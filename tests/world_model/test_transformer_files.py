"""A world model folder is a plain Hugging Face folder, and a wrong one is refused in one line."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.transformer import load_pretrained, save_pretrained


@pytest.fixture
def folder(tmp_path, model, layout):
    save_pretrained(model, layout, tmp_path)
    return tmp_path


@torch.no_grad()
def test_round_trip_through_hugging_face(folder, model, layout):
    ids = torch.arange(30)[None]
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids).logits)
    loaded, read = load_pretrained(folder, expected=layout)
    assert read == layout
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert not loaded.training


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "layout.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_pretrained(folder)


def test_truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pretrained(folder)


def test_another_layout_names_what_differs(folder, layout):
    with pytest.raises(UserError, match="codes 37 != 64"):
        load_pretrained(folder, expected=dataclasses.replace(layout, codes=64))


def test_layout_and_config_disagree(folder, layout):
    (folder / "layout.json").write_text(json.dumps({**dataclasses.asdict(layout), "codes": 30}))
    with pytest.raises(UserError, match="does not match layout"):
        load_pretrained(folder)


def test_weights_and_config_disagree(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"layers\.3"):
        load_pretrained(folder)
