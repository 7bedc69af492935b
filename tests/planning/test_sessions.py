"""Sessions: split or whole, alone or beside others, offloaded or not, their frames are those of one rollout."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from toy_planning import moves, picture, toy

from roboalign_ray import roll_out
from roboalign_ray.config import RolloutConfig
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.planning.sessions import WorldModelSessions
from roboalign_ray.world_model.registry import open_world_model, read_weights

SWR = RolloutConfig.model_validate({"refresh": {"policy": "swr", "window": 2}})


@pytest.fixture(params=["toy", "token"])
def opener(request, token_job):
    if request.param == "toy":
        return toy
    return lambda: open_world_model(token_job / "world_model", SWR)


def start(opener, token_job, number: int = 0) -> np.ndarray:
    if opener is toy:
        return picture(7 + number)[0]
    return open_store(token_job / "store").read(number).view()[0]


def test_sessions_are_rollouts_however_they_are_asked_for(opener, token_job) -> None:
    frames = [start(opener, token_job, number) for number in range(2)]
    actions = np.round(2 * moves(1, 2, 6))
    model = opener()
    whole = [roll_out(model, frames[n], actions[n], seeds=(n,))[0] for n in range(2)]
    sessions = WorldModelSessions(opener)
    one, other = (sessions.open(frames[n], "push", seed=n) for n in range(2))
    made = [sessions.generate(one, actions[0, :1]), sessions.generate(one, actions[0, 1:4])]
    beside = sessions.generate(other, actions[1])
    sessions.offload()
    assert sessions.offloaded
    sessions.offload()
    sessions.close(other)
    sessions.onload()
    sessions.onload()
    made.append(sessions.generate(one, actions[0, 4:]))
    # A decoder's last bit depends on how many frames it decodes at once, and so may one grey level in 10,000.
    for found, wanted in ((np.concatenate(made), whole[0]), (beside, whole[1])):
        off = np.abs(found.astype(int) - wanted)
        assert off.max() <= (0 if opener is toy else 1)
        assert (off > 0).mean() < 1e-3


def test_offloading_lets_go_of_the_model() -> None:
    held = []

    def opener():
        model = toy()
        held.append(weakref.ref(model))
        return model

    sessions = WorldModelSessions(opener)
    sessions.open(picture(3))
    sessions.offload()
    gc.collect()
    assert held[0]() is None
    sessions.onload()
    assert held[1]() is not None


def test_a_failed_call_leaves_the_session_as_it_is() -> None:
    sessions = WorldModelSessions(toy)
    session = sessions.open(picture(3), seed=1)
    first = sessions.generate(session, moves(0, 2))
    for bad in (moves(0, 0), moves(0)[()], np.full((1, 2), np.nan), np.zeros((1, 5))):
        with pytest.raises((UserError, ValueError)):
            sessions.generate(session, bad)
    again = WorldModelSessions(toy)
    copy = again.open(picture(3), seed=1)
    np.testing.assert_array_equal(again.generate(copy, moves(0, 2)), first)
    np.testing.assert_array_equal(again.generate(copy, moves(1, 2)), sessions.generate(session, moves(1, 2)))


def test_other_weights_are_refused_and_it_stays_offloaded(token_job) -> None:
    """The weights differ by one number, as after an update of a policy; the session stands within a segment."""
    opened = []

    def opener():
        model = open_world_model(token_job / "world_model", SWR)
        if opened:
            weights = dict(read_weights(token_job / "world_model"))
            name = sorted(weights)[0]
            model.load_weights({**weights, name: weights[name] + 1}, 1)
        opened.append(1)
        return model

    sessions = WorldModelSessions(opener)
    session = sessions.open(open_store(token_job / "store").read(0).view()[0])
    sessions.generate(session, np.ones((1, 2)))
    sessions.offload()
    with pytest.raises(UserError, match="begun with weight version 0"):
        sessions.onload()
    assert sessions.offloaded


BAD = {
    "unknown session": (lambda s: s.generate(9, moves(0, 1)), "no open session 9"),
    "closed twice": (lambda s: (s.close(0), s.close(0)), "no open session 0"),
    "offloaded": (lambda s: (s.offload(), s.generate(0, moves(0, 1))), "call onload first"),
    "opened while offloaded": (lambda s: (s.offload(), s.open(picture(1))), "call onload first"),
    "not finite": (lambda s: s.generate(0, np.full((1, 2), np.inf)), "not finite"),
    "no actions": (lambda s: s.generate(0, np.empty((0, 2))), "not \\[h, A\\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_in_one_line(name) -> None:
    call, message = BAD[name]
    sessions = WorldModelSessions(toy)
    sessions.open(picture(3))
    with pytest.raises(UserError, match=message):
        call(sessions)
