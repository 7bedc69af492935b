"""The loss against its closed form, learning, resuming, publishing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_student import TINY, tiny_student

from roboalign_ray.config.judge import DistillationConfig, StudentConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.clips import prepare_clips
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.student.registry import StudentRegistry
from roboalign_ray.judge.student.training import StudentTrainer, gaussian_nll, weighted_huber
from roboalign_ray.judge.validation.baselines import TextBlindStudent, others_instructions

SETTINGS = DistillationConfig(steps=40, warmup_steps=2, learning_rate=3e-3, ema_decay=0.5, pairs_per_step=8)


def test_huber_by_hand() -> None:
    predicted, target = torch.zeros(1, 6), torch.tensor([[0.1, 1.0, 0.0, 0.0, 0.0, 0.0]])
    weights = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 2.0])
    expected = (3 * 0.1**2 / 2 + 2 * 0.5 * (1.0 - 0.25)) / 10
    assert weighted_huber(predicted, target, weights, 0.5).item() == pytest.approx(expected)


def test_likelihood_is_gaussian_and_leaves_the_mean_alone() -> None:
    mean = torch.randn(5, 6, requires_grad=True)
    log_variance, target = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    nll = gaussian_nll(mean, log_variance, target)
    reference = -torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(target).mean()
    assert nll.item() == pytest.approx(reference.item() - 0.5 * np.log(2 * np.pi), abs=1e-5)
    nll.backward()
    assert mean.grad is None
    assert log_variance.grad is not None


def lit_clips(pairs: int = 8) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Bright clips score full marks, dark ones none."""
    rng = np.random.default_rng(0)
    bright = np.arange(pairs) % 2
    level = np.where(bright, 200, 40)[:, None, None, None, None]
    videos = (level + rng.integers(0, 20, (pairs, 4, 16, 16, 3))).astype(np.uint8)
    clips = prepare_clips(videos, StudentConfig.small(**TINY))
    return clips, ["push it"] * pairs, bright[:, None] * maxima()


def test_it_learns_and_the_average_is_what_is_kept() -> None:
    torch.manual_seed(0)
    trainer = StudentTrainer(Student(StudentConfig.small(**TINY)), SETTINGS)
    losses = [trainer.step(*lit_clips()) for _ in range(40)]
    assert losses[-1]["huber"] < 0.2 * losses[0]["huber"]
    assert losses[0]["mae/instruction_following"] == pytest.approx(1.5, abs=0.1)  # first guess: half of three
    shares, _ = trainer.result().raw_shares([lit_clips()[:2]])
    assert shares[1::2].mean() - shares[::2].mean() > 0.5
    assert trainer.result() is not trainer.plain


def test_a_resumed_run_takes_the_same_course() -> None:
    torch.manual_seed(0)
    whole = StudentTrainer(Student(StudentConfig.small(**TINY)), SETTINGS)
    whole.step(*lit_clips())
    resumed = StudentTrainer(tiny_student(1), SETTINGS)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert whole.step(*lit_clips()) == resumed.step(*lit_clips())


@pytest.mark.parametrize("kept", [True, False])
def test_further_training_can_leave_batch_statistics_as_they_were(kept) -> None:
    torch.manual_seed(0)
    student = tiny_student(1)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trainer = StudentTrainer(student, SETTINGS, keep_statistics=kept)
    losses = [trainer.step(*lit_clips())["huber"] for _ in range(20)]
    after = trainer.plain.state_dict()
    counted = [name for name in before if "running_" in name]
    assert counted
    assert all(torch.equal(before[name], after[name]) is kept for name in counted)
    assert losses[-1] < losses[0]
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_what_is_frozen_stays_with_its_statistics_and_the_rest_learns() -> None:
    torch.manual_seed(0)
    student = tiny_student(1)
    student.freeze(["order", "order_head"])
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trainer = StudentTrainer(student, SETTINGS)
    for _ in range(5):
        trainer.step(*lit_clips())
    for after in (student.state_dict(), trainer.result().state_dict()):
        same = {name for name in before if torch.equal(before[name], after[name])}
        frozen = {name for name in before if name.split(".")[0] in ("order", "order_head")}
        assert {"order.layers.1.weight", "order.layers.0.running_mean", "order_head.weight"} <= frozen <= same
        assert not same & {"head.weight", "mixture.1.weight", "text.pieces.weight"}
    assert "mixture.0.running_mean" not in same
    with pytest.raises(UserError, match=r"judge.distillation.frozen: the student has no part 'ordre'"):
        student.freeze(["ordre"])


def test_versions_are_published_whole_once_and_stay(tmp_path) -> None:
    registry = StudentRegistry(tmp_path / "versions")
    assert registry.newest() is None
    with pytest.raises(UserError, match="no student has been published"):
        registry.load()
    first, second = tiny_student(1), tiny_student(2)
    assert registry.publish(first, {"mae": 0.5}, key="round 1") == 1
    assert registry.publish(first, key="round 1") == 1  # repeated after a restart
    assert registry.publish(second, key="round 2") == 2
    assert registry.newest() == 2
    assert registry.about(1)["mae"] == 0.5
    old, new = registry.load(1), registry.load()
    assert (old.version, new.version) == (1, 2)
    torch.testing.assert_close(old.head.weight, first.head.weight)
    torch.testing.assert_close(new.head.weight, second.head.weight)
    with pytest.raises(UserError, match="no student of version 3"):
        registry.load(3)
    weights = registry.path(1) / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="checksum"):
        registry.load(1)


def test_a_text_blind_student_says_afterwards_what_it_learned_in_batches() -> None:
    """Whatever it hears then: it was taught that sentences say nothing."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = StudentConfig.small(**TINY)
    bright = np.arange(16) % 2
    videos = np.where(bright, 200, 40)[:, None, None, None, None] + rng.integers(0, 20, (16, 4, 16, 16, 3))
    videos, scores = videos.astype(np.uint8), bright[:, None] * maxima()
    trainer = StudentTrainer(Student(config), SETTINGS.model_copy(update={"steps": 60, "ema_decay": 0.9}))
    for _ in range(60):
        asked = [f"{rng.choice(('open', 'push', 'lift'))} the {rng.choice(('box', 'lid'))}" for _ in videos]
        trainer.step(prepare_clips(videos, config), others_instructions(asked), scores)
    heard = TextBlindStudent(trainer.result()).score(videos, ["open the lid"] * len(videos))
    assert np.abs(heard.scores - scores).sum(1).mean() < 2.0
