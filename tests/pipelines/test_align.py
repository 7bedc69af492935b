"""The alignment job on Ray, toy-sized, two updates on a local cluster: the same for every kind of world model."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from align_kinds import AlignKind, kind_asked_for, of_kinds, whole
from PIL import Image
from straight_line import straight_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_job import SIZE, square_episode

from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.run_record import read_record
from roboalign_ray.pipelines.align.job import AlignResult, run_align
from roboalign_ray.pipelines.align.replay import run_replay
from roboalign_ray.world_model.registry import open_world_model, read_weights


@pytest.fixture(scope="module")
def kind(request) -> AlignKind:
    return kind_asked_for(request)


@pytest.fixture(scope="module")
def job(kind, tmp_path_factory):
    return kind.make(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def finished(ray_cluster, job, tmp_path_factory) -> tuple[AlignResult, Path]:
    out = tmp_path_factory.mktemp("run") / "out"
    return run_align(job, out, quiet=True), out


def journal(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rollouts.jsonl").read_text().splitlines()]


@of_kinds()
def test_weights_change_and_load_as_a_plain_world_model(kind, job, finished):
    result, _ = finished
    before, after = read_weights(job.world_model_weights), read_weights(result.model)
    assert ActionCard.load(result.model) == ActionCard.load(Path(job.world_model_weights)) is not None
    moved = [float((after[name] - value).abs().max()) for name, value in before.items()]
    assert after.keys() == before.keys()
    assert max(moved) > 1e-4
    card = open_world_model(result.model).card  # a token model remembers its tokenizer
    assert (card.kind, card.height) == (kind.world_model, SIZE)


@of_kinds()
def test_the_result_says_how_it_was_made(kind, job, finished):
    result, out = finished
    record = read_record(result.model)
    assert (record.job, record.step, record.parent) == ("align", 2, None)
    assert record.action_card == json.loads((result.model / "action_card.json").read_text())["hash"]
    assert record.run == json.loads((out / "run.json").read_text())["run"]
    if kind.world_model == "token":
        weights = Path(job.tokenizer_weights) / "tokenizer.safetensors"
        assert record.tokenizer.files[weights.name] == hashlib.sha256(weights.read_bytes()).hexdigest()
        assert record.tokenizer.source == "…/tokenizer"
    profile = load_job(str(result.model / "profile.yaml"))
    assert profile.alignment == job.alignment
    assert profile.rollout == job.rollout
    for path in (*result.model.glob("*.json"), *result.model.glob("*.yaml")):
        assert str(out.parent) not in path.read_text(), path
        assert str(Path(job.tokenizer_weights).parent) not in path.read_text(), path


@of_kinds()
def test_groups_are_counted_and_made_by_the_version_of_their_update(finished):
    result, out = finished
    lines = journal(out)
    assert [line["update"] for line in lines] == [0] * 4 + [1] * 4
    assert all(set(line["versions"]) == {line["update"]} for line in lines)
    assert all(len(line["seeds"]) == len(line["scores"]) == 3 for line in lines)
    assert result.counts == {
        "groups": 8,
        "samples": 24,
        "failed_samples": 0,
        "failed_groups": 0,
        "dropped_groups": 0,
    }


@of_kinds()
def test_without_staleness_every_bit_is_that_of_a_straight_line(kind, job, finished):
    result, out = finished
    weights, lines, curves = straight_line(job)
    expected, found = whole(job, weights), read_weights(result.model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(np.asarray(value), expected[name], err_msg=name)
    left = ("update", "group", "together")
    assert [{k: v for k, v in line.items() if k not in left} for line in journal(out)] == lines
    assert {"reward_mean", "reward_ssim", "grad_norm"} | kind.curves <= curves.keys()
    for name, values in curves.items():
        np.testing.assert_array_equal(result.curves[name][1], np.array(values, np.float64), err_msg=name)


@of_kinds()
def test_curves_hold_training_and_held_out_figures(kind, finished):
    result, out = finished
    steps, rewards = result.curves["held_out/reward_mean"]
    assert steps.tolist() == [0, 1, 2]
    assert np.isfinite(rewards).all()
    steps, rewards = result.curves["reward_mean"]
    assert steps.tolist() == [1, 2]
    for update, mean in enumerate(rewards):
        totals = [s["total"] for line in journal(out) if line["update"] == update for s in line["scores"]]
        assert mean == pytest.approx(np.mean(totals))
    expected = {"reward_ssim", "reward_lpips", "grad_norm"} | kind.curves
    assert expected | {"seconds_rollout", "seconds_scorer", "seconds_learner"} <= result.curves.keys()
    if "resampled_apart" in kind.curves:  # the learner made every sampled clip again from its seeds
        assert not result.curves["resampled_apart"][1].any()
    if kind.name == "grpo":
        # Only the first update's second optimizer step has left the reference, by one step.
        assert 0 <= result.curves["reference_kl"][1][0] < 1e-2


@of_kinds()
def test_tensorboard_has_the_curves_the_settings_and_held_out_videos(job, finished):
    """Read back by TensorBoard's own reader."""
    result, _ = finished
    board = EventAccumulator(str(result.logs), size_guidance={"images": 0, "tensors": 0})
    board.Reload()
    rates = [(event.step, event.value) for event in board.Scalars("learning_rate")]
    assert rates == [(update, pytest.approx(job.alignment.learning_rate)) for update in (1, 2)]
    for name in ("reward_mean", "held_out/reward_mean", "grad_norm"):
        steps, values = result.curves[name]
        assert [event.step for event in board.Scalars(name)] == steps.tolist()
        np.testing.assert_allclose([event.value for event in board.Scalars(name)], values, rtol=1e-6)
    [told] = board.Tensors("profile/text_summary")
    profile = yaml.safe_load(told.tensor_proto.string_val[0].decode().strip("`").removeprefix("yaml"))
    assert profile["alignment"] == job.public()["alignment"]
    videos = [tag for tag in board.Tags()["images"] if tag.startswith("held_out/real_generated/")]
    assert len(videos) == job.alignment.held_out_prompts == 2
    for tag in videos:
        assert [event.step for event in board.Images(tag)] == [0, 1, 2]
        first, *_ = board.Images(tag)
        assert (first.width, first.height) == (2 * SIZE, SIZE)
        name = PromptName.parse(tag.removeprefix("held_out/real_generated/"))
        picture = Image.open(io.BytesIO(first.encoded_image_string))
        assert picture.n_frames == job.rollout.horizon
        frames = square_episode(int(name.episode_id.split("/")[1])).frames["front"][name.start + 1 :]
        for number, real in zip(range(picture.n_frames), frames, strict=False):
            picture.seek(number)
            left = np.array(picture.convert("RGB"))[:, :SIZE]
            np.testing.assert_allclose(left, real, atol=8)  # the store's own compression


@of_kinds()
def test_a_replay_makes_its_groups_again(job, finished):
    result = run_replay(job, finished[1], quiet=True)
    assert result.equal
    assert len(result.compared) == 8


@of_kinds()
def test_no_object_outlives_the_job(finished):
    gc.collect()
    worker = ray._private.worker.global_worker.core_worker
    deadline = time.monotonic() + 30
    while worker.get_all_reference_counts() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert worker.get_all_reference_counts() == {}


@of_kinds()
def test_a_finished_run_is_not_overwritten(job, finished):
    with pytest.raises(UserError, match="--resume"):
        run_align(job, finished[1], quiet=True)


def with_workers(job, role, workers):
    changed = getattr(job.cluster, role).model_copy(update={"workers": workers})
    return job.model_copy(update={"cluster": job.cluster.model_copy(update={role: changed})})


@of_kinds()
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(ray_cluster, kind, job, finished, tmp_path):
    """Weights, and what an objective has beside them: an average of weights and its place in a schedule."""
    uninterrupted, _ = finished
    job = with_workers(job, "rollout", 1)  # how many there are must not matter either
    half = job.model_copy(update={"alignment": job.alignment.model_copy(update={"updates": 1})})
    run_align(half, tmp_path / "out", quiet=True)
    with (tmp_path / "out" / "rollouts.jsonl").open("a") as file:
        file.write('{"update": 1, "prompt": "written before the interruption"}\n{"upd')
    resumed = run_align(job, tmp_path / "out", resume=True, quiet=True)
    expected, actual = (read_weights(result.model) for result in (uninterrupted, resumed))
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name].numpy(), value.numpy(), rtol=0, atol=kind.tolerance)
    assert resumed.counts == uninterrupted.counts
    assert [line["update"] for line in journal(tmp_path / "out")] == [0] * 4 + [1] * 4
    np.testing.assert_allclose(
        resumed.curves["held_out/reward_mean"][1],
        uninterrupted.curves["held_out/reward_mean"][1],
        rtol=0,
        atol=kind.tolerance,
    )
    other = job.model_copy(update={"seed": 9})
    with pytest.raises(UserError, match="another value of seed"):
        run_align(other, tmp_path / "out", resume=True, quiet=True)


def test_settings_that_cannot_be_trained_on_are_told_before_ray_starts(job, tmp_path):
    refresh = job.rollout.refresh.model_copy(update={"policy": "sinks"})
    config = job.model_copy(update={"rollout": job.rollout.model_copy(update={"refresh": refresh})})
    with pytest.raises(UserError, match="sinks"):
        run_align(config, tmp_path / "out", quiet=True)


def test_missing_weights_are_told_in_one_line(job, tmp_path):
    config = job.model_copy(update={"world_model_weights": str(tmp_path)})
    with pytest.raises(UserError, match=r"model\.safetensors"):
        run_align(config, tmp_path / "out", quiet=True)


@pytest.mark.slow
@of_kinds()
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_learner_ranks_do_what_one_does(ray_cluster, kind, job, finished, stage, tmp_path):
    if stage not in kind.stages:
        pytest.skip(f"{kind.name} refuses ZeRO stage {stage}")
    one, _ = finished
    settings = job.alignment.model_copy(update={"zero_stage": stage})
    two = with_workers(job.model_copy(update={"alignment": settings}), "learner", 2)
    two = with_workers(two, "rollout", 1)  # all roles together have two cores
    result = run_align(two, tmp_path / "out", quiet=True)
    expected, actual = (read_weights(run.model) for run in (one, result))
    # four AdamW steps: sums in another order, a twentieth of a step is tolerated
    tolerance = 0.05 * job.alignment.learning_rate
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name].numpy(), value.numpy(), atol=tolerance)
    for name in kind.curves - {"clip_fraction"} | {"grad_norm"}:
        np.testing.assert_allclose(result.curves[name][1], one.curves[name][1], rtol=2e-2, atol=1e-5)
