"""The relabelling schedule: never later than K, never twice, the same after a restart. The set: once per id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from roboalign_ray.config.base import ConfigError
from roboalign_ray.config.judge import RelabelConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import DistillationSet, LabelledPairs, ReplaySampler
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.online.relabel_schedule import Drift, RelabelSchedule, measure_drift
from roboalign_ray.judge.rubric import maxima

CONFIGS = st.builds(
    lambda least, more, audit: RelabelConfig(least=least, every=least + more, audit_every=audit),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(0, 4),
)
DRIFTS = st.one_of(
    st.none(),
    st.builds(Drift, st.one_of(st.none(), st.floats(-1, 1)), st.floats(-1, 1), st.integers(3, 8)),
)


@settings(max_examples=100, deadline=None)
@given(CONFIGS, st.lists(DRIFTS, max_size=40))
def test_never_later_than_k_nor_sooner_than_allowed_nor_twice(config, drifts) -> None:
    schedule, last, told = RelabelSchedule(config), 0, []
    for update, drift in enumerate(drifts, 1):
        answer = schedule.after_update(update, drift)
        assert schedule.after_update(update, drift) is None  # asked again: nothing new
        if answer is None:
            assert update - last < config.every
            continue
        assert config.least <= update - last <= config.every
        assert answer.cause == "interval" or drift is not None
        last = update
        told.append(answer.round)
    assert told == list(range(1, len(told) + 1))


@settings(max_examples=60, deadline=None)
@given(CONFIGS, st.lists(DRIFTS, min_size=1, max_size=30), st.data())
def test_a_restart_anywhere_changes_nothing(config, drifts, data) -> None:
    whole, first = RelabelSchedule(config), RelabelSchedule(config)
    cut = data.draw(st.integers(0, len(drifts)))
    expected = [whole.after_update(n, drift) for n, drift in enumerate(drifts, 1)]
    told = [first.after_update(n, drift) for n, drift in enumerate(drifts[:cut], 1)]
    second = RelabelSchedule(config)
    second.load_state_dict(first.state_dict())
    told += [second.after_update(n, drift) for n, drift in enumerate(drifts[cut:], cut + 1)]
    assert told == expected


def test_causes_and_bounds() -> None:
    config = RelabelConfig(every=10, least=2, lowest_rank=0.3, largest_gap=0.1)

    def cause(update: int, drift: Drift | None) -> str | None:
        answer = RelabelSchedule(config).after_update(update, drift)
        return answer and answer.cause

    assert cause(10, None) == "interval"
    assert cause(5, Drift(0.2, 0.0, 8)) == "rank"
    assert cause(5, Drift(0.9, -0.2, 8)) == "gap"
    assert cause(5, Drift(None, 0.05, 8)) is None
    assert cause(1, Drift(-1.0, 0.9, 8)) is None
    schedule = RelabelSchedule(config)
    schedule.after_update(3)
    with pytest.raises(ValueError, match="after update"):
        schedule.after_update(2)
    with pytest.raises(ConfigError, match="least"):
        RelabelConfig(every=2, least=3)


def audits(schedule: RelabelSchedule, updates, able=lambda update: True) -> list[int]:
    """Updates after which an audit is made."""
    made = []
    for update in updates:
        if schedule.audit_due(update) and able(update):
            schedule.audited(update)
            made.append(update)
    return made


def test_audits_fall_between_relabellings() -> None:
    schedule = RelabelSchedule(RelabelConfig(every=6, least=2, audit_every=2))
    assert audits(schedule, range(1, 13)) == [2, 4]
    schedule.after_update(4, Drift(-1.0, 0.0, 8))
    assert audits(schedule, range(5, 13)) == [6, 8]


def test_an_audit_that_could_not_be_made_stays_due() -> None:
    schedule = RelabelSchedule(RelabelConfig(every=0, audit_every=2))
    assert audits(schedule, [1, 2, 3, 4, 5, 6, 7, 8], able=lambda update: update not in (2, 4)) == [3, 5, 7]
    again = RelabelSchedule(schedule.config)
    again.load_state_dict(schedule.state_dict())
    assert audits(again, [8, 9]) == [9]


def test_audits_go_on_where_nothing_may_be_relabelled() -> None:
    """Alarms live on them: before the least distance, and where a student is left as it is for good."""
    soon = RelabelSchedule(RelabelConfig(every=6, least=6, audit_every=2))
    assert audits(soon, range(1, 13)) == [2, 4]
    frozen = RelabelSchedule(RelabelConfig(every=0, audit_every=4))
    assert audits(frozen, range(1, 13)) == [4, 8, 12]
    never = RelabelSchedule(RelabelConfig(every=0, audit_every=0))
    assert audits(never, range(1, 13)) == []


def test_drift_is_scipys_rank_and_the_mean_gap() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.random((9, 6)) * maxima()
    student = np.clip(teacher + rng.normal(0, 0.3, teacher.shape), 0, maxima())
    student[4] = np.nan
    kept = np.arange(9) != 4
    drift = measure_drift(student, teacher)
    assert drift is not None
    assert drift.samples == 8
    expected = stats.spearmanr(student[kept].sum(1), teacher[kept].sum(1)).statistic
    assert drift.rank == pytest.approx(expected)
    assert drift.gap == pytest.approx((student - teacher)[kept].sum(1).mean() / 10)


def test_drift_without_an_order() -> None:
    flat, varied = np.ones((4, 6)), np.outer(np.arange(4) / 3, np.ones(6))
    assert measure_drift(varied, flat).rank is None  # the teacher tells none apart: nothing to agree with
    assert measure_drift(flat, varied).rank == 0.0  # the student tells none apart where the teacher does
    assert measure_drift(flat[:2], flat[:2]) is None


# --- the distillation set ------------------------------------------------------------------------------------------


def pair(name: str, group: str = "", score: float = 1.0) -> JudgedPair:
    frames = np.full((3, 16, 16, 3), 30, np.uint8)
    scores = np.full(6, score, np.float32)
    return JudgedPair(name, group or name, frames, 5.0, "push it", scores, "teacher", "rollout/swr")


def test_every_rollout_is_labelled_once_whatever_is_repeated(tmp_path) -> None:
    labels = DistillationSet(tmp_path)
    assert labels.append(1, [pair("a"), pair("b"), pair("a")]).written == 2
    again = DistillationSet(tmp_path)  # a restart
    told = again.append(1, [pair("b"), pair("c", score=0.5)])
    assert (told.written, told.known) == (1, 1)
    assert again.append(2, [pair("a"), pair("c")]).written == 0
    again.append(2, [pair("d")])
    final = DistillationSet(tmp_path)
    assert final.ids == ["a", "b", "c", "d"]
    assert final.rounds.tolist() == [1, 1, 1, 2]
    assert final.read(2).scores.tolist() == [0.5] * 6
    assert final.scores[2].tolist() == [0.5] * 6


def test_a_write_cut_short_leaves_nothing(tmp_path) -> None:
    labels = DistillationSet(tmp_path)

    def dying():
        yield pair("a")
        raise RuntimeError("teacher died")

    with pytest.raises(RuntimeError):
        labels.append(1, dying())
    (tmp_path / ".writing-abc").write_bytes(b"half")  # of a process that was killed
    assert len(DistillationSet(tmp_path)) == 0
    assert DistillationSet(tmp_path).append(1, [pair("a")]).written == 1


def test_rounds_only_rise_and_damage_is_told(tmp_path) -> None:
    labels = DistillationSet(tmp_path)
    labels.append(3, [pair("a")])
    with pytest.raises(UserError, match="comes before round 3"):
        labels.append(2, [pair("b")])
    next(tmp_path.glob("*.parquet")).write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="cannot be read"):
        DistillationSet(tmp_path)


def test_stores_and_sets_read_as_one(tmp_path) -> None:
    write_pairs([pair("x", score=0.25), pair("y")], tmp_path / "store")
    DistillationSet(tmp_path / "set").append(4, [pair("z", score=0.75)])
    both = LabelledPairs([tmp_path / "store", tmp_path / "set"])
    assert both.ids == ["x", "y", "z"]
    assert both.rounds.tolist() == [0, 0, 4]
    assert [both.read(n).pair_id for n in range(3)] == both.ids
    assert [both.read(n).scores[0] for n in range(3)] == both.scores[:, 0].tolist()
    assert sorted([*both.split("train", 0.5), *both.split("held_out", 0.5)]) == [0, 1, 2]
    with pytest.raises(UserError):
        LabelledPairs([tmp_path / "nowhere"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.integers(1, 12),
    st.floats(0, 0.9),
    st.integers(0, 5),
)
def test_replay_keeps_its_share_and_uses_everything(rounds, batch, ratio, seed) -> None:
    sampler = ReplaySampler(np.array(rounds), batch, ratio, seed)
    newest = np.array(rounds) == max(rounds)
    old = round(batch * ratio) if not newest.all() else 0
    steps = [sampler.positions(step) for step in range(20)]
    for positions in steps:
        assert len(positions) == batch
        assert newest[positions].sum() == batch - old
    again = ReplaySampler(np.array(rounds), batch, ratio, seed)
    np.testing.assert_array_equal(again.positions(13), steps[13])  # a resumed run needs the step alone
    drawn = np.concatenate(steps)[np.isin(np.concatenate(steps), np.flatnonzero(newest))]
    counts = np.bincount(drawn, minlength=len(rounds))[newest]
    assert np.ptp(counts) <= 1  # every pair once before any twice
