"""The old policy: its schedule, its resume, and the run that does not move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from roboalign_ray.alignment.objectives.old_policy import OldPolicy
from roboalign_ray.config import AlignmentConfig
from roboalign_ray.config.alignment_diffusion import OldPolicyConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.state_files import read_state, write_state

CONFIG = OldPolicyConfig(first=0.5, growth=0.1, last=0.75, still_updates=3)


def test_it_is_the_average_that_the_schedule_describes() -> None:
    old = OldPolicy({"w": torch.tensor([0.0, 4.0])}, CONFIG)
    for value, kept in ((1.0, 0.5), (3.0, 0.6), (5.0, 0.7), (7.0, 0.75), (9.0, 0.75)):
        before, new = old.weights["w"].clone(), torch.tensor([value, -value])
        assert old.decay() == pytest.approx(kept)
        left = old.advance({"w": new})
        expected = kept * before + (1 - kept) * new
        torch.testing.assert_close(old.weights["w"], expected)
        assert left == pytest.approx(float((new - expected).norm()), rel=1e-6)


def test_it_differs_from_the_trained_policy_after_the_first_update() -> None:
    """A flat beginning would make both equal."""
    old = OldPolicy({"w": torch.zeros(2)}, OldPolicyConfig())
    assert old.advance({"w": torch.ones(2)}) > 0.5
    with pytest.raises(ValueError, match="greater than 0"):
        OldPolicyConfig(first=0)
    with pytest.raises(UserError, match="at most last"):
        OldPolicyConfig(first=0.9, last=0.5)


def test_weights_that_never_move_end_the_run() -> None:
    start = torch.ones(2)
    old = OldPolicy({"w": start}, CONFIG)
    start += 1  # the average holds its own copy
    assert old.weights["w"].tolist() == [1.0, 1.0]
    still, moved = {"w": torch.ones(2)}, {"w": torch.tensor([1.0, 1.0 + 1e-6])}
    old.advance(still)
    old.advance(still)
    old.advance(moved)
    still = {"w": old.weights["w"].clone()}
    old.advance(still)
    old.advance(still)
    with pytest.raises(UserError, match=r"exactly the old one for 3 updates.*learning_rate"):
        old.advance(still)


def test_it_is_restored_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [{"w": torch.randn(3, generator=generator)} for _ in range(4)]
    one, other = OldPolicy(steps[0], CONFIG), OldPolicy(steps[3], CONFIG)
    one.advance(steps[1])
    write_state(tmp_path / "state", one.state_dict())
    other.load_state_dict(read_state(tmp_path / "state"))
    for old in (one, other):
        old.advance(steps[2])
    assert torch.equal(one.weights["w"], other.weights["w"])
    assert one.decay() == other.decay()
    with pytest.raises(ValueError, match="another model"):
        other.load_state_dict(OldPolicy({"v": torch.zeros(3)}, CONFIG).state_dict())


def test_it_counts_still_updates_over_a_resume() -> None:
    one = OldPolicy({"w": torch.ones(1)}, CONFIG)
    one.advance({"w": torch.ones(1)})
    one.advance({"w": torch.ones(1)})
    other = OldPolicy({"w": torch.ones(1)}, CONFIG)
    other.load_state_dict(one.state_dict())
    with pytest.raises(UserError):
        other.advance({"w": torch.ones(1)})


def test_its_section_is_part_of_a_profile() -> None:
    config = AlignmentConfig(diffusion={"old_policy": {"first": 0.3}})  # type: ignore[arg-type]
    assert config.diffusion.old_policy.first == 0.3
