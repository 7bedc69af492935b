"""Model folders from others: what in them would run code is refused in one line, without a question."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.student.text_encoder import PretrainedText, load_encoder
from roboalign_ray.judge.teacher.model_sources import check_adapter, model_source
from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, load_model
from roboalign_ray.world_model.token.transformer import load_pretrained

WHERE = "judge.student.text_encoder"
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class Config(PretrainedConfig):
    model_type = "mine"
class Model(PreTrainedModel):
    config_class = Config
Tokenizer = Processor = Model
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder whose model, tokenizer and processor are its own modules, and what exists once one of them ran."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    names = {
        "AutoConfig": "code.Config",
        "AutoModel": "code.Model",
        "AutoModelForImageTextToText": "code.Model",
        "AutoTokenizer": ["code.Tokenizer", None],
        "AutoProcessor": "code.Processor",
    }
    for file, more in (
        ("config.json", {"model_type": "mine", "architectures": ["Model"]}),
        ("tokenizer_config.json", {"tokenizer_class": "Tokenizer"}),
        ("processor_config.json", {"processor_class": "Processor"}),
        ("preprocessor_config.json", {"processor_class": "Processor"}),
    ):
        (folder / file).write_text(json.dumps({**more, "auto_map": names}))

    def asked(*_: Any) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr(sys, "stdin", None)
    return folder, marker


@pytest.mark.parametrize(
    "load",
    [
        lambda name: load_encoder(name, weights=True, where=WHERE),
        lambda name: load_encoder(name, weights=False, where=WHERE),
        lambda name: load_model(name, "float32"),
        lambda name: VideoPrompter(name, TeacherConfig(model=name)),
        lambda name: PretrainedText(name, 8, True),
    ],
)
def test_code_beside_the_weights_is_one_line(with_code: tuple[Path, Path], load) -> None:
    folder, marker = with_code
    with pytest.raises(UserError) as told:
        load(str(folder))
    assert "needs custom code" in told.value.line()
    assert str(folder) in told.value.line()
    assert not marker.exists()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_weights_as_pickles_are_one_line(tmp_path: Path, name: str) -> None:
    from transformers import BertConfig

    folder = tmp_path / "model"
    BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    ).save_pretrained(folder)
    torch.save(Touch(tmp_path / "ran"), folder / name)
    for load in (
        lambda: load_encoder(str(folder), weights=True, where=WHERE),
        lambda: model_source(str(folder)),
    ):
        with pytest.raises(UserError, match=f"{name}, a pickle"):
            load()
    assert not (tmp_path / "ran").exists()


def test_an_adapter_as_a_pickle_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    torch.save(Touch(tmp_path / "ran"), tmp_path / "adapter_model.bin")
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(UserError, match=r"adapter_model\.bin, a pickle"):
        check_adapter(str(tmp_path), "base")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("nested", [False, True])
def test_kernels_from_elsewhere_are_one_line(tmp_path: Path, nested: bool) -> None:
    asks = {"attn_implementation": "somebody/kernel"}
    config = {"model_type": "llama", **({"text_config": asks} if nested else asks)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in ("model.safetensors", "layout.json"):
        (tmp_path / file).touch()
    (tmp_path / "layout.json").write_text(
        '{"context_tokens": 4, "dynamics_tokens": 3, "action_tokens": 2, "codes": 12, "action_bins": 5}'
    )
    with pytest.raises(UserError, match="somebody/kernel"):
        model_source(str(tmp_path))
    with pytest.raises(UserError, match="somebody/kernel"):
        load_pretrained(tmp_path)
