"""What every world model promises, as checks that any of them can be run through.

    for check in CHECKS:
        check(Subject(model, prompts))

`prompts` are at least two, of one horizon that spans several segments, with different actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboalign_ray.alignment.records.group_files import load_group, save_group
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.world_model.protocol import Prompt, Rollout, WorldModel

SEEDS = (11, 12, 13)


@dataclass(frozen=True)
class Subject:
    """A world model under test.

    Attributes:
        model: at weight version 0.
        prompts: see above.
        weights, other_weights: those of version 0, and some that make it generate something else.
        folder: for files.
    """

    model: WorldModel
    prompts: Sequence[Prompt]
    weights: Mapping[str, Any]
    other_weights: Mapping[str, Any]
    folder: Path

    @property
    def seeds(self) -> list[tuple[int, ...]]:
        return [tuple(100 * place + seed for seed in SEEDS) for place in range(len(self.prompts))]

    @property
    def actions(self) -> np.ndarray:
        return np.stack([prompt.actions for prompt in self.prompts])

    def stepped(self, lengths: Sequence[int]) -> Any:
        state, done = self.model.begin(self.prompts, self.seeds), 0
        for length in lengths:
            state = self.model.step(state, self.actions[:, done : done + length])
            done += length
        return state


def same(first: Sequence[Rollout], second: Sequence[Rollout]) -> None:
    """Two lists of rollouts are equal bit for bit, but for what they cost."""
    for one, other in zip(first, second, strict=True):
        named = [(r.prompt_id, r.instruction, r.seeds, r.start, r.versions, r.horizon) for r in (one, other)]
        assert named[0] == named[1]
        (told, arrays), (again, others) = one.payload.to_arrays(), other.payload.to_arrays()
        assert told == again
        assert arrays.keys() == others.keys()
        for name, values in arrays.items():
            assert values.dtype == others[name].dtype
            np.testing.assert_array_equal(values, others[name])


def alike(first: np.ndarray, second: np.ndarray) -> None:
    """Frames are equal but for rounding: a decoder's last bit may depend on the batch, and so one grey level."""
    difference = np.abs(first.astype(np.int16) - second)
    assert difference.shape == first.shape == second.shape
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def differ(first: Rollout, second: Rollout) -> bool:
    parts = first.payload.to_arrays()[1], second.payload.to_arrays()[1]
    return any(not np.array_equal(values, parts[1].get(name)) for name, values in parts[0].items())


def pieces_are_the_whole(subject: Subject) -> None:
    horizon = subject.prompts[0].horizon
    whole = subject.model.rollout(subject.prompts, subject.seeds)
    for length in (1, 2, 3, horizon):
        lengths = [min(length, horizon - done) for done in range(0, horizon, length)]
        same(subject.model.rollouts(subject.stepped(lengths)), whole)


def company_changes_nothing(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    together = model.frames(subject.stepped([horizon]))
    for place, prompt in enumerate(subject.prompts):
        for sample, seed in enumerate(subject.seeds[place]):
            state = model.step(model.begin([prompt], [(seed,)]), prompt.actions[None])
            alike(model.frames(state)[0], together[place * len(SEEDS) + sample])


def seeds_and_actions_matter(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    frames = model.frames(subject.stepped([horizon]))
    assert len({row.tobytes() for row in frames[: len(SEEDS)]}) > 1
    begun = model.begin(subject.prompts, subject.seeds)
    assert not np.array_equal(model.frames(model.step(begun, subject.actions[::-1])), frames)


def a_state_can_be_gone_back_to(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    for first in range(horizon):
        middle = subject.stepped([first] if first else [])
        before = model.rollouts(middle) if first else []
        one = model.step(middle, subject.actions[:, first:])
        other = model.step(middle, subject.actions[::-1, first:])
        again = model.step(middle, subject.actions[:, first:])
        whole = model.rollout(subject.prompts, subject.seeds)
        same(model.rollouts(one), whole)
        same(model.rollouts(again), whole)
        assert differ(model.rollouts(other)[0], whole[0])
        if first:
            same(model.rollouts(middle), before)


def actions_may_differ_within_a_group(subject: Subject) -> None:
    """Given per row, rows take their own course, the same whatever the others take."""
    model, rows = subject.model, len(SEEDS) * len(subject.prompts)
    own = np.stack([subject.actions[row % len(subject.prompts)] for row in range(rows)])
    begun = model.begin(subject.prompts, subject.seeds)
    frames = model.frames(model.step(begun, own))
    for row in range(rows):
        all_of_it = np.broadcast_to(own[row], own.shape)
        alike(model.frames(model.step(begun, all_of_it))[row], frames[row])
    middle = model.step(begun, own[:, :1])
    np.testing.assert_array_equal(model.frames(model.step(middle, own[:, 1:])), frames)


def branches_share_their_history(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    chosen, seeds = [len(SEEDS) + 1, 0], [(21, 22), (23, 24)]
    for first in range(1, horizon):
        state = subject.stepped([first])
        branched = model.branch(state, chosen, seeds)
        rest = subject.actions[[1, 0], first:]
        grown = model.step(branched, rest)
        frames = model.frames(grown)
        alike(frames[:, :first], np.repeat(model.frames(state)[chosen], 2, axis=0))
        made = model.rollouts(grown)
        assert [(r.start, r.horizon, r.seeds) for r in made] == [(first, horizon - first, s) for s in seeds]
        assert [r.prompt_id for r in made] == [subject.prompts[1].prompt_id, subject.prompts[0].prompt_id]
        alike(np.concatenate([model.decode(r) for r in made]), frames[:, first:])
        alone = model.step(model.branch(state, chosen[1:], [(24,)]), rest[1:])
        alike(model.frames(alone)[0], frames[3])
        pieces = branched
        for step in range(rest.shape[1]):
            pieces = model.step(pieces, rest[:, step : step + 1])
        same(model.rollouts(pieces), made)


def a_branch_before_the_first_frame_is_a_fresh_rollout(subject: Subject) -> None:
    model = subject.model
    begun = model.begin(subject.prompts, subject.seeds)
    branched = model.branch(begun, [0, len(SEEDS)], [(31, 32)] * 2)
    fresh = model.begin(subject.prompts[:2], [(31, 32)] * 2)
    states = [model.step(state, subject.actions[:2]) for state in (branched, fresh)]
    same(model.rollouts(states[0]), model.rollouts(states[1]))


def states_survive_files(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    whole = model.rollout(subject.prompts, subject.seeds)
    for first in range(horizon):
        state = subject.stepped([first] if first else [])
        arrays = model.save(state)
        assert all(values.dtype.kind in "biuf" for values in arrays.values())
        path = subject.folder / f"state{first}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with np.load(path, allow_pickle=False) as read:
            loaded = model.load(dict(read))
        same(model.rollouts(model.step(loaded, subject.actions[:, first:])), whole)
        branched = [model.branch(s, [1], [(41, 42)]) for s in (state, loaded)]
        grown = [model.step(s, subject.actions[:1, first:]) for s in branched]
        same(model.rollouts(grown[0]), model.rollouts(grown[1]))
    with pytest.raises(UserError):
        model.load({"header": np.zeros(3, np.uint8)})


def frames_are_what_the_card_says(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    card, state = model.card, subject.stepped([horizon])
    frames = model.frames(state)
    assert frames.dtype == np.uint8
    rows = len(SEEDS) * len(subject.prompts)
    assert frames.shape == (rows, horizon, card.views, card.height, card.width, 3)
    assert subject.actions.shape[-1] == card.action_dims
    alike(model.frames(state, horizon - 1), frames[:, -1:])
    decoded = np.concatenate([model.decode(rollout) for rollout in model.rollouts(state)])
    alike(decoded, frames)


def rollouts_travel_without_pixels(subject: Subject) -> None:
    for rollout in subject.model.rollout(subject.prompts, subject.seeds):
        assert rollout.payload.kind == subject.model.card.kind
        assert rollout.payload.units > 0
        assert rollout.horizon == subject.prompts[0].horizon == len(rollout.cost.seconds_per_frame)
        arrays = rollout.payload.to_arrays()[1]
        assert sum(values.nbytes for values in arrays.values()) < subject.model.decode(rollout).nbytes
        path = subject.folder / "group.npz"
        save_group(path, ScoredGroup(rollout, (Failed("not scored"),) * len(rollout.seeds)))
        same([load_group(path).rollout], [rollout])


def new_weights_hold_from_the_next_segment_on(subject: Subject) -> None:
    model, horizon = subject.model, subject.prompts[0].horizon
    plan = model.plan(horizon)
    assert sum(plan) == horizon
    if len(plan) == 1:
        return  # no segment begins on the way
    before = model.rollout(subject.prompts, subject.seeds)
    assert {rollout.versions for rollout in before} == {(0,) * len(plan)}
    half = subject.stepped([1])
    model.load_weights(subject.other_weights, 5)
    assert model.card.version == model.version == 5
    mixed = model.rollouts(model.step(half, subject.actions[:, 1:]))
    assert {rollout.versions for rollout in mixed} == {(0, *[5] * (len(plan) - 1))}
    assert differ(mixed[0], before[0])
    model.load_weights(subject.weights, 0)
    same(model.rollout(subject.prompts, subject.seeds), before)
    states = [(0, subject.weights), *[(5, subject.other_weights)] * (len(plan) - 1)]
    same(model.rollout_again(subject.prompts, subject.seeds, states), mixed)
    with pytest.raises(UserError, match="weight versions"):
        model.rollout_again(subject.prompts, subject.seeds, states[:1])
    model.load_weights(subject.weights, 0)


def what_does_not_fit_is_told(subject: Subject) -> None:
    model, prompts = subject.model, subject.prompts
    begun = model.begin(prompts, subject.seeds)
    faults: list[Callable[[], object]] = [
        lambda: model.begin(prompts, subject.seeds[:1]),
        lambda: model.step(begun, subject.actions[:, :0]),
        lambda: model.step(begun, subject.actions[..., :1]),
        lambda: model.step(begun, np.concatenate([subject.actions] * 2)[:-1]),
        lambda: model.rollouts(begun),
        lambda: model.frames(begun),
        lambda: model.branch(begun, [99], [(1,)]),
        lambda: model.branch(begun, [0], []),
        lambda: model.load_weights({}, 1),
    ]
    for fault in faults:
        with pytest.raises(UserError):
            fault()
    assert model.version == 0


def work_is_a_sign_of_life(subject: Subject) -> None:
    before = subject.model.work
    subject.stepped([1])
    assert subject.model.work > before


CHECKS: tuple[Callable[[Subject], None], ...] = (
    pieces_are_the_whole,
    company_changes_nothing,
    seeds_and_actions_matter,
    a_state_can_be_gone_back_to,
    actions_may_differ_within_a_group,
    branches_share_their_history,
    a_branch_before_the_first_frame_is_a_fresh_rollout,
    states_survive_files,
    frames_are_what_the_card_says,
    rollouts_travel_without_pixels,
    new_weights_hold_from_the_next_segment_on,
    what_does_not_fit_is_told,
    work_is_a_sign_of_life,
)
