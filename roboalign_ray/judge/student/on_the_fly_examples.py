"""Fresh examples: some judged pairs of every batch reworded, asked for something else, or spoiled anew, labelled by
the rules.

A bench of ten thousand pairs holds a few hundred wrong sentences and some thousand spoiled clips. Once a student knows
those by heart it has learned neither language nor what is wrong with a blur; here it never sees the same one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from roboalign_ray.config.judge import DistillationConfig
from roboalign_ray.judge.bench.corruptions import Material
from roboalign_ray.judge.bench.degradation_table import (
    DEGRADATIONS,
    LEAST_FRAMES,
    LOCAL,
    WHOLE,
    Degradation,
    degrade,
)
from roboalign_ray.judge.bench.wording import CONTRADICTIONS, reworded, taught_phrases
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.judge.student.spelling import words_of

_ASKED_ELSE = DEGRADATIONS["wrong_instruction"]
_SPOILABLE = ("real", "counterfactual")  # first words of kinds: what is faultless as a video
_FREE = tuple(d for d in WHOLE if not d.needs)
# What these cost depends on seeing the task being done; a clip of what comes afterwards hardly loses by them.
_OF_THE_EVENT = ("freeze", "reverse", "slow_down", "truncated", "loop")
# No frame of these looks wrong, only what comes after what: they are learned last, too, and drawn oftener.
OF_ORDER = (
    "local_reverse",
    "reverse_from",
    "boomerang",
    "local_shuffle",
    "jump_back",
    "local_freeze",
    "stutter",
    "skip",
    "rush",
)
_OFTENER, _OFTENEST = 2, 4
# What runs backwards or is shuffled for a few frames can hardly be distinguished from a sound clip in which an arm
# turns round: unless such clips are as frequent in training as sound ones that look like them, a median (Huber) calls
# both sound.
_HARDEST = ("local_reverse", "reverse_from", "local_shuffle")
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # the gate tries a judge at full strength
_CONTRADICTED = 0.75  # of those asked for something else: by the pair's own sentence, turned round
_DONE = 0.8  # share of the points of instruction following from which a clip does what a negation forbids


@dataclass(frozen=True)
class FreshShares:
    """Which share of pairs is changed, each 0 to 1.

    Attributes:
        spoiled: of faultless videos, that are spoiled.
        local: of these, that are spoiled in a part alone.
        asked_else: of all pairs, that are asked for something else.
        reworded: of all pairs, whose sentence comes in other words; that changes no score.
    """

    spoiled: float = 0.0
    local: float = 0.0
    asked_else: float = 0.0
    reworded: float = 0.0


def fresh_shares(config: DistillationConfig) -> FreshShares:
    """Those of a distillation."""
    return FreshShares(config.spoiled, config.local, config.asked_else, config.reworded)


class FreshExamples:
    """Changes a share of the pairs it is given.

    Args:
        shares: of each change.
        pairs: those that sentences are taken from. A group's name without its last part is its task; a pair is asked
            for another task's sentence, or for its own turned round.
        seed: of all draws.
    """

    def __init__(self, shares: FreshShares, pairs: LabelledPairs, seed: int) -> None:
        self._shares, self._seed = shares, seed
        sentences: dict[str, set[str]] = {}
        for sentence, group, kind in zip(pairs.instructions, pairs.group_ids, pairs.kinds, strict=True):
            if kind != _ASKED_ELSE_KIND:  # those sentences are other tasks'
                sentences.setdefault(_task(group), set()).add(sentence)
        self._sentences = {task: sorted(known) for task, known in sorted(sentences.items())}

    def words(self) -> frozenset[str]:
        """All words of the sentences that a student may be asked here."""
        known = {sentence for sentences in self._sentences.values() for sentence in sentences}
        return words_of([*known, *taught_phrases()])

    def batch(self, pairs: Sequence[JudgedPair], step: int) -> list[JudgedPair]:
        """The pairs of a training step, some of them changed. The draws follow from seed, step and place; what is cut
        into a clip comes from the other pairs of the batch."""
        return [
            self._changed(pair, pairs, np.random.default_rng((self._seed, step, place)))
            for place, pair in enumerate(pairs)
        ]

    def _changed(self, pair: JudgedPair, batch: Sequence[JudgedPair], rng: np.random.Generator) -> JudgedPair:
        shares = self._shares
        spoilt, asked_else, other_words = rng.random(3) < (shares.spoiled, shares.asked_else, shares.reworded)
        if spoilt and _faultless(pair) and len(pair.frames) >= LEAST_FRAMES:
            local = rng.random() < shares.local
            pair = _spoiled_locally(pair, batch, rng) if local else _spoiled(pair, rng)
        if asked_else:
            pair = self._asked_else(pair, rng)
        return replace(pair, instruction=reworded(pair.instruction, rng)) if other_words else pair

    def _asked_else(self, pair: JudgedPair, rng: np.random.Generator) -> JudgedPair:
        # Whether a pair's own sentence is its clip's is not known of one that was asked for something else before.
        if pair.kind == _ASKED_ELSE_KIND:
            return pair
        sentence = self._contradicted(pair, rng) if rng.random() < _CONTRADICTED else None
        others = [task for task in self._sentences if task != _task(pair.group_id)]
        if sentence is None and others:
            sentences = self._sentences[others[rng.integers(len(others))]]
            sentence = sentences[rng.integers(len(sentences))]
        if sentence is None:
            return pair
        return replace(pair, instruction=sentence, scores=_ASKED_ELSE.scores(pair.scores, 1.0))

    def _contradicted(self, pair: JudgedPair, rng: np.random.Generator) -> str | None:
        done = pair.scores[0] >= _DONE * maxima()[0]
        # A clip that does not do what it is forbidden to do is no example of either.
        names = [name for name in CONTRADICTIONS if name != "negated" or done]
        names += ["other_verb"] * 2  # the hardest to tell
        return CONTRADICTIONS[names[rng.integers(len(names))]](pair.instruction, rng, False)


def _spoiled(pair: JudgedPair, rng: np.random.Generator) -> JudgedPair:
    done = pair.provenance.get("done")
    of_the_event = [d for d in _FREE if d.name in _OF_THE_EVENT]
    # They are learned last, and so are drawn twice as often.
    rules = [d for d in _FREE if d not in of_the_event] if done == 0 else [*_FREE, *of_the_event]
    return _by_rule(pair, rules, rng, Material(done=done))


def _spoiled_locally(pair: JudgedPair, batch: Sequence[JudgedPair], rng: np.random.Generator) -> JudgedPair:
    scenes: list[np.ndarray] = []
    episodes: list[np.ndarray] = []
    for other in batch:
        if _faultless(other) and other.group_id != pair.group_id:
            same_task = _task(other.group_id) == _task(pair.group_id)
            (episodes if same_task else scenes).append(other.frames)
    scene, episode = (found[int(rng.integers(len(found)))] if found else None for found in (scenes, episodes))
    material = Material(done=pair.provenance.get("done"), other_scene=scene, other_episode=episode)
    rules = [rule for rule in LOCAL if rule.possible(material) for _ in range(_frequency(rule.name))]
    return _by_rule(pair, rules, rng, material)


def _frequency(rule: str) -> int:
    if rule in _HARDEST:
        return _OFTENEST
    return _OFTENER if rule in OF_ORDER else 1


def _by_rule(
    pair: JudgedPair, rules: Sequence[Degradation], rng: np.random.Generator, material: Material
) -> JudgedPair:
    rule, strength = rules[int(rng.integers(len(rules)))], float(rng.choice(STRENGTHS))
    made = degrade(rule.name, pair.frames, pair.instruction, pair.scores, strength, rng, material)
    return replace(pair, frames=made.frames, scores=made.scores)


_ASKED_ELSE_KIND = f"degraded/{_ASKED_ELSE.name}"


def _faultless(pair: JudgedPair) -> bool:
    return pair.kind.split("/")[0] in _SPOILABLE


def _task(group_id: str) -> str:
    return group_id.rsplit("/", 1)[0]
