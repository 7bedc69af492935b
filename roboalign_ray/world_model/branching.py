"""Groups of rollouts that continue a history which the model generated itself.

    real start ─► clip ─► clip ─► … ─► clip ─┬─► sample of the group
                  shared, generated once     ├─► sample
                                             └─► sample

PersistWorld (arXiv 2603.25685) trains on such candidates: the model meets its own errors, and candidates differ in
nothing but the last clip. Works with every world model: it takes no more than `begin`, `step`, `branch`, `rollouts`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import Prompt, Rollout, WorldModel
from roboalign_ray.world_model.whole_rollouts import whole_actions

# Best sample of each group, by its position.
Choose = Callable[[Sequence[Rollout]], Sequence[int]]


def branched_rollouts(
    model: WorldModel,
    prompts: Sequence[Prompt],
    shared: Sequence[int],
    seeds: Sequence[tuple[int, ...]],
    *,
    choose: Choose | None = None,
) -> list[Rollout]:
    """One rollout per prompt: the frames after its first `shared` ones, `len(seeds[i])` samples each.

    Prompts of equal shape run as one batch. A prompt that shares nothing is rolled out as `WorldModel.rollout` does.

    Args:
        prompts: each to its own horizon, shared frames included.
        shared: per prompt, frames of the history that its samples share; fewer than its horizon.
        seeds: per prompt; they hold for the last clip. What makes the history follows from them.
        choose: None makes the history of one sample. Otherwise each clip of it, as long as the last one, is generated
            with as many samples as the last one, and the chosen sample is continued.

    Raises:
        UserError: prompts, shared lengths and seeds do not fit together or the model; or with `choose` the shared
            frames are no whole number of clips.
    """
    if not len(prompts) == len(shared) == len(seeds):
        counts = f"{len(shared)} shared lengths and {len(seeds)} tuples of seeds for {len(prompts)} prompts"
        raise UserError(counts, where="rollout")
    batches: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
    for index, (prompt, frames) in enumerate(zip(prompts, shared, strict=True)):
        if not 0 <= frames < prompt.horizon:
            raise UserError(
                f"{frames} shared frames of {prompt.horizon}", where=f"prompt '{prompt.prompt_id}'"
            )
        batches[prompt.horizon, prompt.given, len(seeds[index]), frames].append(index)
    made: dict[int, Rollout] = {}
    for (_, _, _, frames), members in batches.items():
        some, own = [prompts[index] for index in members], [seeds[index] for index in members]
        found = _branched(model, some, frames, own, choose) if frames else model.rollout(some, own)
        made.update(zip(members, found, strict=True))
    return [made[index] for index in range(len(prompts))]


def _branched(
    model: WorldModel,
    prompts: Sequence[Prompt],
    shared: int,
    seeds: Sequence[tuple[int, ...]],
    choose: Choose | None,
) -> list[Rollout]:
    """Prompts of one shape."""
    actions = whole_actions(prompts)
    if choose is None:
        state = model.step(model.begin(prompts, [_derived(own, 0)[:1] for own in seeds]), actions[:, :shared])
        rows: Sequence[int] = range(len(prompts))
    else:
        clip, samples = actions.shape[1] - shared, len(seeds[0])
        if shared % clip:
            raise UserError(f"{shared} shared frames are no whole number of clips of {clip}", where="rollout")
        state = model.begin(prompts, [_derived(own, 0) for own in seeds])
        for number, first in enumerate(range(0, shared, clip)):
            if first:
                state = model.branch(state, rows, [_derived(own, number) for own in seeds])
            state = model.step(state, actions[:, first : first + clip])
            best = choose(model.rollouts(state))
            rows = [group * samples + place for group, place in enumerate(best)]
    return model.rollouts(model.step(model.branch(state, rows, seeds), actions[:, shared:]))


def _derived(seeds: tuple[int, ...], clip: int) -> tuple[int, ...]:
    """Seeds of the history's clip: others than those of the last one, and of every other clip."""
    return tuple(
        int(np.random.SeedSequence([seed, clip]).generate_state(1, np.uint64)[0] >> 1) for seed in seeds
    )
