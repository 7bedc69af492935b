"""What update loop, learner and checkpoints rely on, of every objective: micro-batches, ranks, resume, empty steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective_cases import CASES, REWARDS, Case, toy_gradient
from toy_objective import ToyObjective, toy_folder

from roboalign_ray.alignment.objectives.protocol import merge_metrics
from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.foundation.failures import UserError


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def folder(case: Case, tmp_path: Path) -> Path:
    return case.folder(tmp_path / "base")


def groups_of(case: Case, count: int = 4) -> list[ScoredGroup]:
    """Of which one has lost a sample."""
    rewards: list[tuple[float | None, ...]] = [REWARDS] * count
    rewards[0] = (0.3, None, 0.8)
    return [case.group(seed, rewards[seed]) for seed in range(count)]


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and numbers of nested mappings, by their paths."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{name}/{key}")
    else:
        yield name, tree


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Sums of float32 in another order."""
    assert one.keys() == other.keys()
    scale = max(float(value.abs().max()) for value in other.values())
    assert scale > 1e-6
    for name, value in other.items():
        torch.testing.assert_close(
            one[name], value, rtol=1e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_many_micro_batches_are_one(case: Case, folder: Path) -> None:
    whole, small = case.run(folder), case.run(folder, **case.small)
    results = []
    for run in (whole, small):
        run.perturb()
        run.moves = False
        results.append(run.update(groups_of(case)))
    assert small.backwards > 2 * whole.backwards
    assert results[0].steps == results[1].steps == 2
    for one, other in zip(small.gradients, whole.gradients, strict=True):
        assert_alike(one, other)
    assert results[0].metrics == pytest.approx(results[1].metrics, rel=1e-3, abs=1e-5)
    assert (results[0].size, results[0].counts) == (results[1].size, results[1].counts)


@pytest.mark.parametrize("ranks", [2, 7])
def test_ranks_add_up_to_one_and_pass_equally_often(case: Case, folder: Path, ranks: int) -> None:
    """With seven ranks some have no sample of their own."""
    runs = [case.run(folder, **case.small) for _ in range(ranks + 1)]
    results = []
    for number, run in enumerate(runs):
        run.perturb()
        run.moves = False
        rank = (0, 1) if number == ranks else (number, ranks)
        results.append(run.update(groups_of(case, 2), *rank))
    *shares, whole = runs
    assert len({(run.backwards, run.passes) for run in shares}) == 1
    for step, expected in enumerate(whole.gradients):
        total = {name: sum(run.gradients[step][name] for run in shares) for name in expected}
        assert_alike(total, expected)  # type: ignore[arg-type]
    merged = merge_metrics([result.metrics for result in results[:-1]])
    assert merged == pytest.approx(results[-1].metrics, rel=1e-3, abs=1e-5)
    assert len({(r.steps, r.size, r.unit, r.counts) for r in results}) == 1


def test_a_restored_run_goes_on_bit_for_bit(case: Case, folder: Path, tmp_path: Path) -> None:
    first, second = groups_of(case), [case.group(seed, REWARDS) for seed in range(10, 14)]
    run, again = case.run(folder), case.run(folder)
    run.update(first)
    run.save(tmp_path / "state")
    run.update(second)
    again.load(tmp_path / "state")
    again.update(second)
    ends = [dict(leaves(one.state() | {"out": one.objective.published(one.model)})) for one in (run, again)]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(torch.as_tensor(ends[1][name]), torch.as_tensor(value)), name


def test_what_is_saved_is_what_is_published(case: Case, folder: Path, tmp_path: Path) -> None:
    """Held-out curves are of published weights, and a replay takes saved ones."""
    run = case.run(folder)
    for _ in range(2):
        run.update(groups_of(case))
    run.objective.save(run.model, tmp_path / "saved")
    saved = run.objective.open_policy(tmp_path / "saved")
    whole = getattr(saved, "whole", dict)  # new adapters change nothing
    expected = getattr(run.model, "whole", dict)(run.objective.published(run.model))
    found = whole(saved.weights())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_equal_rewards_leave_the_regulariser_alone(case: Case, folder: Path) -> None:
    groups = [case.group(seed, [0.5] * 3) for seed in range(2)]
    run, free = case.run(folder), case.run(folder, **case.free)
    for one in (run, free):
        one.perturb()
        case.catch_up(one)
        one.moves = False
    expected = case.regulariser(run.model, run.objective, groups)
    result = run.update(groups)
    free.update(groups)
    assert result.counts.flat_groups == 2
    assert_alike(run.gradients[0], expected)
    assert not any(value.any() for value in free.gradients[0].values())


def test_a_step_without_a_valid_sample_is_left_out_on_every_rank(case: Case, folder: Path) -> None:
    nothing = [case.group(0, (None, None, None)), case.group(1, (0.5, None, None))]
    something = [case.group(seed, REWARDS) for seed in (2, 3)]
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        run = case.run(folder)
        result = run.update([*nothing, *something], rank, ranks)
        assert result.steps == len(run.gradients) == 1
        assert (result.counts.dropped_groups, result.counts.failed_samples) == (2, 6)
        still = case.run(folder)
        before = {name: value.clone() for name, value in still.model.state_dict().items()}
        result = still.update(nothing, rank, ranks)
        assert (result.steps, result.size, still.backwards) == (0, 0, 0)
        assert np.isnan(result.grad_norm)
        assert all(torch.equal(value, before[name]) for name, value in still.model.state_dict().items())


def test_the_toys_gradient_is_the_closed_form(tmp_path: Path) -> None:
    """Update loop and objective together, on a payload without tokens."""
    case = CASES["toy"]
    run = case.run(toy_folder(tmp_path / "base"))
    run.perturb()
    groups = groups_of(case, 2)
    expected = toy_gradient(run.model, run.objective, groups)
    run.update(groups)
    assert_alike(run.gradients[0], expected)


def test_objectives_are_found_by_name() -> None:
    assert isinstance(build_objective(AlignmentConfig(objective="toy_objective:ToyObjective")), ToyObjective)
    with pytest.raises(UserError, match=r"alignment.objective: unknown objective 'grop'.*grpo"):
        build_objective(AlignmentConfig(objective="grop"))
    with pytest.raises(UserError, match="is no objective"):
        build_objective(AlignmentConfig(objective="toy_objective:ToyModel"))


def test_grpo_refuses_a_job_whose_samples_cannot_be_trained_on() -> None:
    job = load_job("demo", ["rollout.sampling.temperature=0.5"])
    with pytest.raises(UserError, match=r"rollout.sampling"):
        build_objective(job.alignment).check(job)
