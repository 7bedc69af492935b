"""Pre-training, evaluation, packing: whole pipelines on toy episodes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_job import make_tiny_job

from roboalign_ray.config.loading import dump_yaml, load_job
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.run_record import read_record
from roboalign_ray.foundation.telemetry.metrics import read_curves
from roboalign_ray.pipelines.cli import main as cli
from roboalign_ray.pipelines.evaluate.job import run_evaluate
from roboalign_ray.pipelines.release.pack_assets import pack
from roboalign_ray.pipelines.train.train_job import _means
from roboalign_ray.pipelines.train.world_model import run_pretrain
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.registry import check_world_model, open_world_model, read_description
from roboalign_ray.world_model.token.transformer import load_pretrained

TRAINING = {
    "episodes": {"frame_stride": 2},
    "tokenizer_training": {
        "steps": 4,
        "windows_per_step": 4,
        "frames_per_window": 3,
        "context_range": 2,
        "perceptual_weight": 0.0,
        "log_every": 2,
        "checkpoint_every": 2,
        "precision": "float32",
    },
    "pretraining": {
        "steps": 4,
        "windows_per_step": 4,
        "context_range": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "precision": "float32",
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, ray_cluster):
    """A pre-training run of both stages: (config, folder, summary).

    Its store and its folder are named by relative paths, as in the README; Ray Train's workers stand elsewhere.
    """
    folder = tmp_path_factory.mktemp("pretrain")
    config = make_tiny_job(folder, **TRAINING)
    out = folder / "run"
    named = config.model_copy(update={"episodes": config.episodes.model_copy(update={"store": "store"})})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        summary = run_pretrain(named, Path("run"))
    return config, out, summary


def test_both_stages_leave_loadable_models_and_curves(run):
    config, out, summary = run
    assert {stage: summary[stage]["steps"] for stage in summary} == {"tokenizer": 4, "world_model": 4}
    tokenizer = DualBranchTokenizer.load(out / "tokenizer")
    assert tokenizer.config == config.tokenizer
    model, layout = load_pretrained(out / "world_model")
    assert model.config.vocab_size == layout.vocabulary
    assert ActionBinner.load(out / "world_model").bins == config.episodes.action_bins
    assert read_description(out / "world_model").tokenizer == "../tokenizer"
    assert open_world_model(out / "world_model").card == check_world_model(out / "world_model", config=config)
    card = ActionCard.load(out / "world_model")
    assert card == fitted_action_card(open_store(config.episodes.store), config.episodes)
    assert ActionBinner.load(out / "world_model") == ActionBinner.from_card(card, config.episodes.action_bins)
    steps, losses = read_curves(out / "logs" / "world_model")["loss"]
    assert steps.tolist() == [2, 4]
    assert np.isfinite(losses).all()


def test_both_results_say_how_they_were_made(run):
    config, out, _ = run
    for stage in ("tokenizer", "world_model"):
        record = read_record(out / stage)
        assert (record.job, record.step, record.run) == (stage, 4, None)
        profile = load_job(str(out / stage / "profile.yaml"))
        assert (profile.pretraining, profile.tokenizer) == (config.pretraining, config.tokenizer)
        for path in (*(out / stage).glob("*.json"), *(out / stage).glob("*.yaml")):
            assert str(out.parent) not in path.read_text(), path
    weights = (out / "tokenizer" / "tokenizer.safetensors").read_bytes()
    stands_on = read_record(out / "world_model").tokenizer
    assert stands_on.source == "this run"
    assert stands_on.files["tokenizer.safetensors"] == hashlib.sha256(weights).hexdigest()
    card = json.loads((out / "world_model" / "action_card.json").read_text())
    assert read_record(out / "world_model").action_card == card["hash"]
    assert (read_record(out / "tokenizer").tokenizer, read_record(out / "tokenizer").action_card) == (
        None,
        None,
    )


@pytest.mark.parametrize("stage", ["tokenizer", "world_model"])
def test_tensorboard_has_the_learning_rate_and_the_settings(run, stage):
    _, out, _ = run
    board = EventAccumulator(str(out / "logs" / stage))
    board.Reload()
    steps, rates = read_curves(out / "logs" / stage)["learning_rate"]
    shown = board.Scalars("learning_rate")
    assert [event.step for event in shown] == steps.tolist() == [2, 4]
    np.testing.assert_allclose([event.value for event in shown], rates, rtol=1e-6)
    assert (rates > 0).all()
    [told] = board.Tensors("profile/text_summary")
    assert b"windows_per_step: 4" in told.tensor_proto.string_val[0]


def test_a_complete_run_is_not_trained_again(run):
    config, out, summary = run
    weights = (out / "tokenizer" / "tokenizer.safetensors").stat().st_mtime_ns
    again = run_pretrain(config, out)
    assert again == summary
    assert (out / "tokenizer" / "tokenizer.safetensors").stat().st_mtime_ns == weights


def test_the_command_line_ends_with_the_folders_and_the_next_command(run, tmp_path, capsys):
    config, out, _ = run
    profile = tmp_path / "job.yaml"
    profile.write_text(dump_yaml(config))
    assert cli.run(["pretrain", str(profile), "--out", str(out), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folders = {name: str((out / name).absolute()) for name in ("tokenizer", "world_model")}
    assert [f"{name} folder: {folder}" for name, folder in folders.items()] == lines[-3:-1]
    words = shlex.split(lines[-1].removeprefix("next: "))
    assert words[:3] == ["roboalign", "align", str(profile)]
    sets = [word for flag, word in itertools.pairwise(words) if flag == "--set"]
    assert sets == [f"{name}_weights={folder}" for name, folder in folders.items()]
    assert words[-2:] == ["--out", f"{out}_aligned"]

    pointed = config.model_copy(update={f"{name}_weights": folder for name, folder in folders.items()})
    profile.write_text(dump_yaml(pointed))
    only = ["pretrain", str(profile), "--stage", "tokenizer", "--set", "seed=0", "--out", str(out), "--quiet"]
    assert cli.run(only) == 0
    follow = f"next: roboalign pretrain {profile} --set seed=0 --out {out} --stage world_model"
    assert capsys.readouterr().out.splitlines()[-1] == follow
    assert cli.run(["pretrain", str(profile), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: roboalign align {profile} --out {out}_aligned"


def test_means_leave_out_what_is_not_finite():
    rows = [{"loss": 1.0, "own": math.nan, "never": math.nan}, {"loss": 3.0, "own": 5.0, "never": math.inf}]
    assert _means(rows) == {"loss": 2.0, "own": 5.0}


def test_packed_weights_are_the_trained_ones_rounded_to_bfloat16(run, tmp_path):
    _, out, _ = run
    sizes = pack(out, tmp_path)
    assert sizes["tokenizer"] < sum(f.stat().st_size for f in (out / "tokenizer").iterdir())
    trained, packed = (load_pretrained(folder / "world_model")[0] for folder in (out, tmp_path))
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(packed.state_dict()[name], value.bfloat16().float())
    assert ActionCard.load(tmp_path / "world_model") == ActionCard.load(out / "world_model") is not None
    assert DualBranchTokenizer.load(tmp_path / "tokenizer").config.height == 32
    assert "roboalign pretrain" in (tmp_path / "world_model" / "README.md").read_text()


def test_an_incomplete_run_is_not_packed(tmp_path):
    with pytest.raises(UserError, match="not complete"):
        pack(tmp_path, tmp_path / "target")


def test_evaluation_measures_all_protocols_and_policies(run, tmp_path):
    config, out, _ = run
    config = config.model_copy(
        update={
            "tokenizer_weights": str(out / "tokenizer"),
            "world_model_weights": str(out / "world_model"),
            "evaluation": config.evaluation.model_copy(
                update={"episodes": 2, "horizon": 4, "windows": (2, 3), "bootstrap_resamples": 50}
            ),
        }
    )
    result = run_evaluate(config, tmp_path / "eval", quiet=True)
    assert json.loads((tmp_path / "eval" / "evaluation.json").read_text())["windows"] == 2
    assert (tmp_path / "eval" / "evaluation.png").stat().st_size > 10_000
    names = [row["policy"] for row in result["long_horizon"]["rows"]]
    assert len(names) == len(set(names)) == 7  # plain, SWR twice, three rivals, copying
    figures = result["one_step"]["figures"]
    assert set(figures) == {"predicted", "shuffled_actions", "copy_last"}
    # Reconstruction bounds nothing for an untrained model, but its codes must be counted right.
    reconstruction = result["reconstruction"]
    assert 1 <= reconstruction["codes_used"]["dynamics"] <= reconstruction["codes"] == 16


def test_a_store_of_another_robot_is_refused(tmp_path, ray_cluster):
    config = make_tiny_job(tmp_path, **TRAINING, world_model={"action_dims": 3})
    with pytest.raises(UserError, match="action"):
        run_pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
