"""Plans the labelled videos of the bench: quotas by kind, evenly spread proposals, and the choice among made pairs.

No video is read here. Proposals depend only on (config, position), so a longer bench begins with the proposals of a
shorter one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from roboalign_ray.config.bench import BenchConfig
from roboalign_ray.episodes.windows import completing_starts
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.bench.degradation_table import TABLE

Family = Literal["real", "counterfactual", "degraded", "rollout"]
FAMILIES: tuple[Family, ...] = ("real", "counterfactual", "degraded", "rollout")
_CAPPED = (
    "counterfactual",
    "rollout",
)  # families with measured scores; scores of real and degraded clips are known
_EXPERT = "/expert"


@dataclass(frozen=True)
class Proposal:
    """A proposed video.

    Attributes:
        family: the kind's first word.
        position: number within the family; it names the pair and seeds its random draws.
        episode: position of the source episode in its store.
        start: number of its first frame, before the stride.
        name: degradation, or refresh policy.
        strength: strength of the degradation, or sampling temperature.
    """

    family: Family
    position: int
    episode: int
    start: int
    name: str = ""
    strength: float = 0.0


@dataclass(frozen=True)
class EpisodeIndex:
    """The data of a store that planning needs: one entry per episode.

    Attributes:
        ids, groups, lengths: names, groups, numbers of frames.
        done: first frame in which the task counts as done; None if it is never done or unknown. Empty: unknown for all.
    """

    ids: Sequence[str]
    groups: Sequence[str]
    lengths: Sequence[int]
    done: Sequence[int | None] = ()

    def families(self) -> dict[str, list[int]]:
        """Positions of "real" episodes (a group's expert, or its first) and of "counterfactual" ones (the others)."""
        members: dict[str, list[int]] = defaultdict(list)
        for number, group in enumerate(self.groups):
            members[group].append(number)
        found: dict[str, list[int]] = {"real": [], "counterfactual": []}
        for numbers in members.values():
            expert = next((n for n in numbers if self.ids[n].endswith(_EXPERT)), numbers[0])
            found["real"].append(expert)
            found["counterfactual"] += [n for n in numbers if n != expert]
        return found

    def done_in_group(self) -> list[int | None]:
        """The frame in which each episode's task is done; if it is never done, that of the group's real episode."""
        if not self.done:
            return [None] * len(self.ids)
        real = {self.groups[n]: self.done[n] for n in self.families()["real"]}
        pairs = zip(self.done, self.groups, strict=True)
        return [real[group] if own is None else own for own, group in pairs]


def quotas(config: BenchConfig, available: Sequence[str]) -> dict[str, int]:
    """Pairs per family. They sum to `config.pairs`; shares of unavailable families are distributed to the others.

    Raises:
        UserError: no family with a share is available.
    """
    shares = {name: float(getattr(config, name)) for name in FAMILIES if name in available}
    total = sum(shares.values())
    if total <= 0:
        raise UserError(
            "no family with a share is available", where="bench", remedy="give another family a share"
        )
    exact = {name: config.pairs * share / total for name, share in shares.items()}
    counts: dict[str, int] = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_rest[: config.pairs - sum(counts.values())]:
        counts[name] += 1
    return counts


class Planner:
    """Returns proposals by family, each once.

    Args:
        index: the store's episodes.
        config: strengths, policies, temperatures, seed.
        span: number of episode frames that a clip covers.

    Raises:
        UserError: no episode is long enough.
    """

    def __init__(self, index: EpisodeIndex, config: BenchConfig, span: int) -> None:
        self._index, self._config, self._span = index, config, span
        self._done = index.done_in_group()
        families = index.families()
        self._episodes: dict[str, list[int]] = {
            name: [n for n in numbers if index.lengths[n] >= span] for name, numbers in families.items()
        }
        if not self._episodes["real"]:
            raise UserError(
                f"no episode has the {span} frames of a clip",
                where="bench",
                remedy="lower bench.frames or episodes.frame_stride",
            )
        self._episodes["degraded"] = self._episodes["real"]
        self._episodes["rollout"] = self._episodes["real"] + self._episodes["counterfactual"]
        self._next: Counter[str] = Counter()
        self._combinations: dict[str, list[tuple[str, float]]] = {
            "degraded": [(d.name, s) for s, d in product(config.strengths, TABLE)],
            "rollout": list(product(config.refresh, config.temperatures)),
        }

    def available(self) -> list[str]:
        """Families that the store has episodes for."""
        return [name for name in FAMILIES if self._episodes[name]]

    def propose(self, family: Family, count: int) -> list[Proposal]:
        """The next `count` proposals of a family."""
        first = self._next[family]
        self._next[family] += count
        return [self._proposal(family, position) for position in range(first, first + count)]

    def _proposal(self, family: Family, position: int) -> Proposal:
        episodes = self._episodes[family]
        lap, place = divmod(position, len(episodes))
        code = FAMILIES.index(family)
        order = np.random.default_rng([self._config.seed, code, lap]).permutation(len(episodes))
        episode = episodes[order[place]]
        rng = np.random.default_rng([self._config.seed, code, 1 << 20, position])
        proposal = Proposal(family, position, episode, self._start(family, episode, rng))
        if combinations := self._combinations.get(family):
            name, strength = combinations[position % len(combinations)]
            return replace(proposal, name=name, strength=strength)
        return proposal

    def _start(self, family: Family, episode: int, rng: np.random.Generator) -> int:
        """The first frame of a clip: mostly such that the task is done within the clip, else random.

        Degraded clips always show the task being done, if possible. A clip from after that would look no worse when it
        is reversed or truncated.
        """
        length = self._index.lengths[episode]
        starts = completing_starts(length, self._done[episode], self._span)
        if starts and (family == "degraded" or rng.random() < self._config.completing):
            return int(rng.integers(starts.start, starts.stop))
        return int(rng.integers(length - self._span + 1))


class Balancer:
    """Accepts pairs until every family has its quota, and for measured families at most `cap` pairs per score level.

    A level is a bin of one point of the total. Pure: no clock, no randomness.
    """

    def __init__(self, counts: Mapping[str, int], level_cap: float) -> None:
        self._quotas, self._cap = dict(counts), level_cap
        self._taken: Counter[str] = Counter()
        self._levels: Counter[tuple[str, int]] = Counter()

    def missing(self) -> dict[str, int]:
        """Pairs that are still missing, by family; complete families are left out."""
        wanted = {name: count - self._taken[name] for name, count in self._quotas.items()}
        return {name: count for name, count in wanted.items() if count > 0}

    def lift_cap(self) -> None:
        """Accept any score level from now on."""
        self._cap = 1.0

    def take(self, family: str, total: float) -> bool:
        """Whether a pair of this family and total score is needed; if so, it is counted as accepted."""
        if self._taken[family] >= self._quotas.get(family, 0):
            return False
        level = (family, min(9, int(total)))
        if family in _CAPPED and self._levels[level] >= max(1, round(self._cap * self._quotas[family])):
            return False
        self._taken[family] += 1
        self._levels[level] += 1
        return True
