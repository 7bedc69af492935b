"""Planning a bench: quotas, even spread, caps; all without a video."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign_ray.config.bench import BenchConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.degradation_table import TABLE
from roboalign_ray.judge.bench.plan import FAMILIES, Balancer, EpisodeIndex, Planner, quotas

GROUPS, VARIANTS = 7, ("expert", "noisy", "wander")
INDEX = EpisodeIndex(
    ids=[f"sim/{group}/{variant}" for group in range(GROUPS) for variant in VARIANTS],
    groups=[f"sim/{group}" for group in range(GROUPS) for _ in VARIANTS],
    lengths=[40] * (GROUPS * len(VARIANTS)),
)
CONFIG = BenchConfig()


@settings(deadline=None)
@given(pairs=st.integers(1, 20_000), available=st.sets(st.sampled_from(FAMILIES), min_size=1))
def test_quotas_sum_to_the_pairs_and_keep_the_shares(pairs: int, available: set[str]) -> None:
    config = BenchConfig(pairs=pairs)
    counts = quotas(config, sorted(available))
    assert sum(counts.values()) == pairs
    assert set(counts) == available
    total = sum(getattr(config, name) for name in available)
    for name, count in counts.items():
        assert abs(count - pairs * getattr(config, name) / total) < 1 + 1e-9


def test_experts_are_real_and_the_others_counterfactual() -> None:
    families = INDEX.families()
    assert families["real"] == list(range(0, 21, 3))
    assert len(families["counterfactual"]) == 14
    alone = EpisodeIndex(["a", "b"], ["a", "b"], [40, 40])
    assert alone.families() == {"real": [0, 1], "counterfactual": []}
    assert Planner(alone, CONFIG, 25).available() == ["real", "degraded", "rollout"]


def test_proposals_are_spread_evenly_and_reproducible() -> None:
    planner, again = Planner(INDEX, CONFIG, 25), Planner(INDEX, CONFIG, 25)
    combinations = len(TABLE) * len(CONFIG.strengths)
    proposals = planner.propose("degraded", 7 * combinations)
    assert proposals == again.propose("degraded", 100) + again.propose("degraded", 7 * combinations - 100)
    assert set(Counter((p.name, p.strength) for p in proposals).values()) == {7}
    counts = Counter(p.episode for p in proposals)
    assert set(counts) == set(INDEX.families()["real"])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {p.start for p in proposals} == set(range(16))  # every start that fits 25 of 40 frames
    policies = Counter((p.name, p.strength) for p in planner.propose("rollout", 90))
    assert set(policies.values()) == {10}
    assert len(policies) == len(CONFIG.refresh) * len(CONFIG.temperatures)


def test_clips_mostly_show_the_task_being_done() -> None:
    done = [{"expert": 30, "noisy": None, "wander": 3}[name.rsplit("/", 1)[1]] for name in INDEX.ids]
    index = EpisodeIndex(INDEX.ids, INDEX.groups, [80] * len(INDEX.ids), done)
    assert index.done_in_group()[:3] == [30, 30, 3]
    planner = Planner(index, CONFIG, 25)

    def shown(family: str, count: int = 400) -> float:
        proposals = planner.propose(family, count)
        moments = [(p.start, index.done_in_group()[p.episode]) for p in proposals]
        return float(np.mean([start < moment < start + 25 for start, moment in moments]))

    assert shown("degraded") == 1
    for family in ("real", "counterfactual", "rollout"):
        assert (
            CONFIG.completing < shown(family) < 1
        )  # the others begin anywhere, and some show it all the same
    early = [p.start for p in planner.propose("degraded", 400)]
    assert min(early) == 30 - 24  # the last frame shows it
    assert max(early) == 30 - 25 // 4


@settings(deadline=None)
@given(totals=st.lists(st.floats(0, 10), max_size=300), cap=st.floats(0.2, 1))
def test_no_level_takes_more_than_its_share(totals: list[float], cap: float) -> None:
    balancer = Balancer({"rollout": 40, "real": 5}, cap)
    taken = [total for total in totals if balancer.take("rollout", total)]
    levels = Counter(min(9, int(total)) for total in taken)
    assert len(taken) <= 40
    assert max(levels.values(), default=0) <= max(1, round(cap * 40))
    assert balancer.missing().get("rollout", 0) == 40 - len(taken)
    balancer.lift_cap()
    while balancer.missing().get("rollout"):
        assert balancer.take("rollout", 9.5)
    assert not balancer.take("rollout", 3.0)
    assert all(balancer.take("real", 10.0) for _ in range(5))  # real clips are all alike: no cap
    assert not balancer.take("real", 10.0)
    assert not balancer.take("degraded", 5.0)
    assert balancer.missing() == {}


def test_what_cannot_be_planned_is_told() -> None:
    with pytest.raises(UserError, match="no episode has the 50 frames"):
        Planner(INDEX, CONFIG, 50)
    with pytest.raises(UserError, match="no family with a share is available"):
        quotas(BenchConfig(real=0, counterfactual=0.5, degraded=0, rollout=0), ["real"])
    nothing = dict.fromkeys(FAMILIES, 0)
    for bad in (nothing, {"strengths": (0.0,)}, {"refresh": ()}):
        with pytest.raises(UserError):
            BenchConfig(**bad)
    assert np.isclose(sum(getattr(CONFIG, name) for name in FAMILIES), 1)
