"""The DeepSpeed learner with an objective and a policy that know no tokens; its learning rates as weights move."""

from __future__ import annotations

import numpy as np
import pytest
from toy_objective import KEPT, WEIGHTS, toy_folder, toy_group

from roboalign_ray.actors.learner import LearnerActor
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.foundation.storage.state_files import read_state
from roboalign_ray.foundation.weight_sync.packing import unpack

REWARDS = (0.1, 0.9, 0.4)


def settings(objective="ToyObjective", **changes):
    defaults = {
        "prompts_per_update": 2,
        "minibatch_prompts": 1,
        "group_size": 3,
        "updates": 20,
        "learning_rate": 1e-2,
        "kl_coefficient": 0.1,
        "micro_batch_tokens": 2,
    }
    return AlignmentConfig(objective=f"toy_objective:{objective}", **(defaults | changes))


@pytest.fixture
def joined(tmp_path):
    """Makes learners of one toy world model that have joined; ends them."""
    folder, made = toy_folder(tmp_path / "base"), []

    def learner(config):
        actor = LearnerActor(folder, config)
        actor.join(actor.address())
        made.append(actor)
        return actor

    yield learner
    for actor in made:
        actor.close()


def weights(learner):
    with learner.policy.whole_weights() as model:
        return {name: value.detach().clone().numpy() for name, value in model.weights().items()}


def published(learner):
    version, manifest = learner.publish()
    *buckets, _ = learner.take_buckets()
    return version, unpack(manifest, buckets)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_policy_without_tokens_is_trained_published_saved_and_resumed(joined, stage, tmp_path):
    config = settings(zero_stage=stage)
    batches = [[toy_group(seed, REWARDS) for seed in (first, first + 1)] for first in (0, 2)]
    learner = joined(config)
    ours = [weights(learner)]
    average = ours[0]
    for number, batch in enumerate(batches, 1):
        result = learner.update(*batch)
        assert (result.steps, result.size, result.unit) == (2, 6, "sample")
        ours.append(weights(learner))
        # What the objective hands to rollout workers is its average of old weights, here from its recurrence.
        average = {name: KEPT * average[name] + (1 - KEPT) * ours[-1][name] for name in average}
        version, held = published(learner)
        assert version == number
        for name, value in average.items():
            np.testing.assert_allclose(held[name], value, rtol=1e-5, atol=1e-6)
        if number == 1:
            learner.save_state(tmp_path / "state")
    assert np.abs(ours[2]["weight"] - ours[0]["weight"]).max() > 1e-3
    learner.save(tmp_path / "saved")
    saved = read_state(tmp_path / "saved" / WEIGHTS)
    assert all(np.array_equal(saved[name].numpy(), value) for name, value in held.items())

    again = joined(config)
    assert again.load_state(tmp_path / "state") == 1
    again.update(*batches[1])
    for one, other in ((weights(again), ours[2]), (published(again)[1], held)):
        assert all(np.array_equal(one[name], value) for name, value in other.items())


def test_the_learner_takes_the_same_steps_as_plain_adamw(joined):
    """One step of AdamW from rest moves each weight by its rate against the sign of the gradient."""
    learner = joined(settings(prompts_per_update=1))
    before = weights(learner)
    learner.update(toy_group(0, REWARDS))
    for name, value in weights(learner).items():
        np.testing.assert_allclose(np.abs(value - before[name]), 1e-2, rtol=1e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_rate_rises_over_the_warm_up_and_stays(joined, stage, tmp_path):
    """The loss's gradient is 1 by every weight at every step, so AdamW moves each weight by the rate itself."""
    config = settings("ConstantSlope", prompts_per_update=1, warmup_updates=4, zero_stage=stage)
    learner, group = joined(config), toy_group(0, REWARDS)
    rates = []
    for update in range(7):
        if update == 2:  # a learner that is lost goes on where it was in its warm-up
            learner.save_state(tmp_path / "state")
            learner = joined(config)
            learner.load_state(tmp_path / "state")
        before = weights(learner)
        learner.update(group)
        moved = np.concatenate(
            [(before[name] - value).reshape(-1) for name, value in weights(learner).items()]
        )
        np.testing.assert_allclose(moved, moved.mean(), rtol=1e-3)
        rates.append(moved.mean())
    expected = 1e-2 * np.array([0.25, 0.5, 0.75, 1, 1, 1, 1])
    np.testing.assert_allclose(rates, expected, rtol=1e-3)
