"""The sequence layout against sequences built one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.token.layout import SequenceLayout

layouts = st.builds(
    SequenceLayout,
    context_tokens=st.integers(1, 9),
    dynamics_tokens=st.integers(1, 6),
    action_tokens=st.integers(1, 5),
    codes=st.integers(1, 40),
    action_bins=st.integers(1, 20),
)


@settings(max_examples=60, deadline=None)
@given(layouts, st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_assemble_and_predicted(layout, frames, last_action_known, seed):
    generator = np.random.default_rng(seed)
    context = generator.integers(0, layout.codes, (2, layout.context_tokens))
    dynamics = generator.integers(0, layout.codes, (2, frames, layout.dynamics_tokens))
    known = frames if last_action_known else frames - 1
    actions = generator.integers(0, layout.action_bins, (2, known, layout.action_tokens))
    ids = layout.assemble(context, dynamics, actions)
    for row in range(2):
        expected = [layout.codes + code for code in context[row]]
        predicted = []
        for frame in range(frames):
            for code in dynamics[row, frame]:
                if frame > 0:
                    predicted.append(len(expected))
                expected.append(code)
            if frame < known:
                expected += [2 * layout.codes + value for value in actions[row, frame]]
        assert ids[row].tolist() == expected
        assert layout.predicted(frames).tolist() == predicted
    assert ids.max() < layout.bos
    if last_action_known:
        assert ids.shape[1] == layout.length(frames)


def test_the_papers_vocabulary_and_lengths():
    layout = SequenceLayout(1280, 80, 13, 4375, 256)
    assert layout.vocabulary == 9008
    assert (layout.dynamics_range, layout.context_range, layout.action_range) == (
        (0, 4375),
        (4375, 8750),
        (8750, 9006),
    )
    assert layout.length(8) == 2024


def test_values_and_shapes_outside_are_refused():
    layout = SequenceLayout(2, 2, 1, 10, 5)
    context, dynamics, actions = np.zeros((2,), int), np.zeros((3, 2), int), np.zeros((3, 1), int)
    for broken in (
        (context + 10, dynamics, actions),
        (context, dynamics - 1, actions),
        (context, dynamics, actions + 5),
        (context[:1], dynamics, actions),
        (context, dynamics, actions[:1]),
    ):
        with pytest.raises(UserError, match="sequence layout"):
            layout.assemble(*broken)
