"""Schedules reach their peak, and averages of weights follow the weights, however short the training is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roboalign_ray.config import JobConfig
from roboalign_ray.config.base import ConfigError
from roboalign_ray.config.loading import load_job, profile_names
from roboalign_ray.foundation.optimisation import learning_rate_factor, weight_average


@pytest.mark.parametrize("profile", profile_names())
def test_every_training_of_every_profile_reaches_its_peak(profile: str) -> None:
    job = load_job(profile)
    trainings = {
        "tokenizer": (job.tokenizer_training.warmup, job.tokenizer_training.steps),
        "world model": (job.pretraining.warmup, job.pretraining.steps),
        "student": (job.judge.distillation.warmup, job.judge.distillation.steps),
        "teacher": (job.teacher.training.warmup, job.teacher.training.steps),
        "policy": (job.alignment.warmup_updates, job.alignment.updates),
    }
    for name, (warmup, steps) in trainings.items():
        rates = [
            learning_rate_factor(step, warmup=warmup, total=steps, schedule="constant", floor=0.0)
            for step in (steps // 5, steps - 1)
        ]
        assert rates == [1.0, 1.0], name


def test_published_warm_ups_are_kept() -> None:
    assert load_job("paper_rt1").pretraining.warmup == 5000
    assert load_job("demo", ["pretraining.steps=200000"]).pretraining.warmup == 5000
    assert load_job("demo", ["pretraining.steps=40"]).pretraining.warmup == 4
    assert load_job("demo", ["pretraining.warmup_steps=0"]).pretraining.warmup == 0


@pytest.mark.parametrize(
    "section", ["tokenizer_training", "pretraining", "judge.distillation", "teacher.training"]
)
def test_a_warm_up_that_never_ends_is_refused(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}.warmup_steps: a warm-up of 30 steps does not end"):
        load_job("demo", [f"{section}.steps=30", f"{section}.warmup_steps=30"])
    load_job("demo", [f"{section}.steps=30", f"{section}.warmup_steps=29"])


def test_an_adversarial_term_that_never_starts_is_refused() -> None:
    with pytest.raises(ConfigError, match="starts at step 10000 of 2000"):
        load_job("demo", ["tokenizer_training.gan_weight=0.1", "tokenizer_training.steps=2000"])


def test_a_long_average_is_the_exponential_one() -> None:
    """Against the closed form: after the decay's warm-up, each weight counts `decay` times less per step."""
    model, decay = nn.Linear(1, 1, bias=False), 0.5  # (1 + n) / (10 + n) passes 0.5 at n = 8
    average = weight_average(model, decay)
    assert average is not None
    values = torch.arange(1.0, 41.0)
    for value in values:
        nn.init.constant_(model.weight, float(value))
        average.update_parameters(model)
    weights = decay ** torch.arange(len(values) - 1, -1, -1.0) * (1 - decay)
    assert float(average.module.weight) == pytest.approx(float((weights * values).sum()), abs=1e-4)


def test_a_short_average_is_not_the_untrained_model() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = weight_average(model, 0.999)
    assert average is not None
    for value in range(21):  # at 0.999 a fixed decay would keep 98 % of the first weights
        nn.init.constant_(model.weight, float(value))
        average.update_parameters(model)
    assert float(average.module.weight) > 13


def test_no_average_at_decay_zero() -> None:
    assert weight_average(nn.Linear(1, 1), 0.0) is None


def test_seeds_fit_every_generator() -> None:
    assert load_job("demo", [f"seed={2**63 - 1}"]).seed == 2**63 - 1
    for seed in (2**63, 2**64, -1):
        with pytest.raises(ConfigError, match="seed: expected"):
            load_job("demo", [f"seed={seed}"])
    assert JobConfig(seed=0).seed == 0
