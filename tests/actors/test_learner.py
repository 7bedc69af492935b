"""The DeepSpeed learner against plain PyTorch on the same groups."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign_ray.actors.learner import LearnerActor
from roboalign_ray.alignment.objectives.grpo import GrpoObjective
from roboalign_ray.alignment.objectives.token_policy import TokenPolicy, predict_batch
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.alignment.update import policy_update
from roboalign_ray.config import AlignmentConfig, WorldModelConfig
from roboalign_ray.episodes.actions import ActionBinner
from roboalign_ray.foundation.storage.state_files import StateError, read_state, write_state
from roboalign_ray.foundation.weight_sync.packing import unpack
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.world_model.protocol import Rollout, RolloutCost
from roboalign_ray.world_model.token.layout import SequenceLayout
from roboalign_ray.world_model.token.rollout import TokenPayload, TokenSegment
from roboalign_ray.world_model.token.transformer import build_model, load_pretrained, save_pretrained

LAYOUT = SequenceLayout(context_tokens=4, dynamics_tokens=3, action_tokens=2, codes=12, action_bins=5)


def settings(**changes):
    return AlignmentConfig(
        **(
            {
                "prompts_per_update": 4,
                "minibatch_prompts": 2,
                "group_size": 3,
                "learning_rate": 1e-3,
                "clip_norm": 0.5,
                "micro_batch_tokens": 60,
            }
            | changes
        )
    )


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    sizes = WorldModelConfig(hidden=32, layers=2, heads=2, kv_heads=2, ffn=48, action_dims=2)
    save_pretrained(build_model(sizes, LAYOUT), LAYOUT, tmp_path / "base")
    ActionBinner((-1.0, -1.0), (1.0, 1.0), LAYOUT.action_bins).save(tmp_path / "base")
    return tmp_path / "base"


def make_group(seed):
    """Random tokens, with log-probabilities near those of an untrained model (log 12 = 2.48)."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 12, (3, 2, 3), dtype=np.int32)
    segment = TokenSegment(
        context=generator.integers(0, 12, (1, 4), dtype=np.int32),
        given=generator.integers(0, 12, (1, 1, 3), dtype=np.int32),
        actions=generator.integers(0, 5, (2, 2), dtype=np.int32),
        tokens=tokens,
        logprobs=-generator.uniform(2.3, 2.6, tokens.shape).astype(np.float32),
        version=0,
    )
    rollout = Rollout(f"p{seed}", "", (0, 1, 2), TokenPayload((segment,)), RolloutCost(np.zeros(2)))
    return ScoredGroup(rollout, tuple(Scored(float(r)) for r in generator.normal(size=3)))


def published(learner):
    """Version and weights as a rollout worker has them in the end."""
    version, manifest = learner.publish()
    *buckets, count = learner.take_buckets()
    assert count == len(buckets) == len(manifest.buckets)
    return version, unpack(manifest, buckets)


class PlainPolicy:
    def __init__(self, module, config):
        self.module, self.config = module, config
        self.layout, self.device = module.layout, torch.device("cpu")
        self.optimizer = torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=0.0)

    def predict(self, batch):
        return predict_batch(self.module, batch)

    def backward(self, loss, last):
        loss.backward()

    def step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


def plain_updates(folder, config, batches):
    model, layout = load_pretrained(folder)
    module, frozen = TokenPolicy(model, layout), TokenPolicy(copy.deepcopy(model), layout)
    policy, results = PlainPolicy(module, config), []
    objective = GrpoObjective(config)
    objective.layout, objective.reference = layout, lambda batch: predict_batch(frozen, batch)
    for groups in batches:
        results.append(
            policy_update(
                policy,
                groups,
                config,
                objective,
            )
        )
    return model, results


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_takes_the_same_steps_as_plain_adamw(folder, stage, tmp_path):
    config = settings(zero_stage=stage)
    batches = [[make_group(seed) for seed in range(first, first + 4)] for first in (0, 4)]
    expected, plain = plain_updates(folder, config, batches)

    learner = LearnerActor(folder, config)
    learner.join(learner.address())
    try:
        results = [learner.update(*groups) for groups in batches]
        version, weights = published(learner)
        learner.save(tmp_path / "saved")
    finally:
        learner.close()

    assert version == 2
    for ours, theirs in zip(results, plain, strict=True):
        assert (ours.steps, ours.size, ours.counts) == (theirs.steps, theirs.size, theirs.counts)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-3, abs=1e-4)
    saved, layout = load_pretrained(tmp_path / "saved")
    assert layout == LAYOUT
    start, _ = load_pretrained(folder)
    for name, value in expected.state_dict().items():
        # four AdamW steps of 1e-3 each: a twentieth of one step is tolerated
        np.testing.assert_allclose(weights[name], value.numpy(), atol=5e-5)
        np.testing.assert_array_equal(weights[name], saved.state_dict()[name].numpy())
    assert any(not np.array_equal(weights[name], value.numpy()) for name, value in start.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_state_resumes_to_the_same_next_step(folder, stage, precision, tmp_path):
    config = settings(zero_stage=stage, precision=precision)
    first, second = ([make_group(seed) for seed in range(s, s + 4)] for s in (0, 4))

    def run(resume):
        learner = LearnerActor(folder, config)
        learner.join(learner.address())
        try:
            if resume:
                assert learner.load_state(tmp_path / "state") == 1
            else:
                learner.update(*first)
                learner.save_state(tmp_path / "state")
            learner.update(*second)
            return published(learner)
        finally:
            learner.close()

    torch.manual_seed(time.time_ns())  # what a process drew before must not matter
    (version, weights), (again, resumed) = run(False), run(True)
    extra = read_state(tmp_path / "state" / "rank-0.safetensors")["extra"]
    torch.testing.assert_close(extra["generator"], torch.manual_seed(0).get_state())
    assert version == again == 2
    for name, value in weights.items():
        np.testing.assert_array_equal(value, resumed[name])


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_pickles_in_place_of_the_state_run_nothing(folder, tmp_path):
    learner = LearnerActor(folder, settings())
    learner.join(learner.address())
    try:
        learner.save_state(tmp_path / "state")
        ran = tmp_path / "ran"
        files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
        for path in files:
            torch.save({"module": Touch(ran), "version": Touch(ran)}, path)
        with pytest.raises(StateError, match="is not training state"):
            learner.load_state(tmp_path / "state")
        assert not ran.exists()
        torch.load(files[0].rename(tmp_path / "state.pt"), weights_only=False)  # the file would have run it
        assert ran.exists()
    finally:
        learner.close()


@pytest.mark.parametrize("change", ["shape", "name", "stage", "optimizer"])
def test_state_of_another_model_or_stage_is_one_line(folder, change, tmp_path):
    learner = LearnerActor(folder, settings(zero_stage=0))
    learner.join(learner.address())
    try:
        learner.update(*[make_group(seed) for seed in range(4)])
        learner.save_state(tmp_path / "state")
        rank, model = tmp_path / "state" / "rank-0.safetensors", tmp_path / "state" / "model.safetensors"
        held, weights = read_state(rank), read_state(model)
        first = next(iter(weights))
        if change == "shape":
            weights[first] = weights[first][:1]
        elif change == "name":
            weights["another"] = weights.pop(first)
        elif change == "stage":
            held["stage"] = 2
        else:
            held["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
        write_state(rank, held)
        write_state(model, weights)
        with pytest.raises(StateError, match="does not fit this job") as told:
            learner.load_state(tmp_path / "state")
        assert told.value.line().count("\n") == 0
    finally:
        learner.close()


def test_bfloat16_trains(folder):
    config = settings(precision="bfloat16", learning_rate=1e-2)
    learner = LearnerActor(folder, config)
    learner.join(learner.address())
    try:
        result = learner.update(*[make_group(seed) for seed in range(4)])
        _, weights = published(learner)
    finally:
        learner.close()
    assert result.metrics["reference_kl"] < 0.1
    start, _ = load_pretrained(folder)
    moved = [np.abs(weights[name] - value.numpy()).max() for name, value in start.state_dict().items()]
    assert max(moved) > 1e-3
    assert weights["lm_head.weight"].dtype == np.float32


def test_in_bfloat16_the_first_kl_is_exactly_zero_and_frequencies_are_exact(folder):
    """Policy and frozen reference are one model in one precision until the first step."""
    config = settings(precision="bfloat16", prompts_per_update=2, minibatch_prompts=2)
    learner = LearnerActor(folder, config)
    learner.join(learner.address())
    try:
        copies = [learner.policy.engine.module.model, learner.objective.frozen.model]
        result = learner.update(make_group(0), make_group(1))
    finally:
        learner.close()
    assert result.metrics["reference_kl"] == 0
    for model in copies:
        assert model.lm_head.weight.dtype == torch.bfloat16
        frequencies = model.model.rotary_emb.inv_freq
        assert frequencies.dtype == torch.float32
        expected = 10_000.0 ** (-np.arange(0, 16, 2) / 16)
        np.testing.assert_allclose(frequencies.numpy(), expected, rtol=1e-6)


TWO_RANKS = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from roboalign_ray.actors.learner import LearnerActor
from test_learner import make_group, settings

folder, rank, address = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
batches = [[make_group(seed) for seed in range(first, first + 4)] for first in (0, 4)]
for stage in (1, 2, 3):
    ends = []
    for resumes in (False, True):
        learner = LearnerActor(folder / "base", settings(zero_stage=stage), rank=rank, ranks=2)
        learner.join(address)
        if resumes:
            assert learner.load_state(folder / f"state{stage}") == 1
        else:
            learner.update(*batches[0])
            learner.save_state(folder / f"state{stage}")
            torch.distributed.barrier()
        learner.update(*batches[1])
        with learner.policy.whole_weights() as model:
            ends.append({name: value.clone() for name, value in model.state_dict().items()})
        learner.close()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items()), stage
print("equal")
"""


def test_two_ranks_resume_to_the_same_next_step(folder, tmp_path):
    """Every rank keeps its own part; nothing of DeepSpeed's own format is left in the folder."""
    address = LearnerActor(folder, settings()).address()
    command = [sys.executable, "-c", TWO_RANKS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [rank.communicate(timeout=300) for rank in ranks]
    assert [out.splitlines()[-1:] for out, _ in told] == [["equal"]] * 2, told
    for stage in (1, 2, 3):
        names = sorted(path.name for path in (tmp_path / f"state{stage}").rglob("*"))
        assert names == ["model.safetensors", "rank-0.safetensors", "rank-1.safetensors"]
