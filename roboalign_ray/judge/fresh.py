"""Fresh examples: some judged pairs of every batch asked for something else, or spoiled anew, labelled by the rules.

A bench of ten thousand pairs holds a few hundred wrong sentences and some thousand spoiled clips. Once a student knows
those by heart it has learned neither language nor what is wrong with a blur; here it never sees the same one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from roboalign_ray.judge.bench.degradations import DEGRADATIONS, LEAST_FRAMES, TABLE, degrade
from roboalign_ray.judge.bench.spoiling import Material
from roboalign_ray.judge.labels import LabelledPairs
from roboalign_ray.judge.pairs import JudgedPair

_ASKED_ELSE = DEGRADATIONS["wrong_instruction"]
_SPOILABLE = ("real", "counterfactual")  # first words of kinds: what is faultless as a video
_FREE = tuple(d for d in TABLE if not d.needs)
# What these cost depends on seeing the task being done; a clip of what comes afterwards hardly loses by them.
_OF_THE_EVENT = ("freeze", "reverse", "slow_down", "truncated", "loop")
_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # the gate tries a judge at full strength


class FreshExamples:
    """Changes a share of the pairs it is given.

    Args:
        spoiled: share of faultless videos that are spoiled.
        asked_else: share of all pairs that are asked for something else.
        pairs: those that sentences are taken from. A group's name without its last part is its task; a pair is asked
            for another task's sentence.
        seed: of all draws.
    """

    def __init__(self, spoiled: float, asked_else: float, pairs: LabelledPairs, seed: int) -> None:
        self._shares, self._seed = (spoiled, asked_else), seed
        sentences: dict[str, set[str]] = {}
        for told, group in zip(pairs.instructions, pairs.group_ids, strict=True):
            sentences.setdefault(_task(group), set()).add(told)
        self._sentences = {task: sorted(told) for task, told in sorted(sentences.items())}

    def batch(self, pairs: Sequence[JudgedPair], step: int) -> list[JudgedPair]:
        """The pairs of a training step, some of them changed. The draws follow from seed, step and place."""
        return [
            self._changed(pair, np.random.default_rng((self._seed, step, place)))
            for place, pair in enumerate(pairs)
        ]

    def _changed(self, pair: JudgedPair, rng: np.random.Generator) -> JudgedPair:
        spoilt, asked_else = rng.random(2) < self._shares
        if spoilt and pair.kind.split("/")[0] in _SPOILABLE and len(pair.frames) >= LEAST_FRAMES:
            pair = _spoiled(pair, rng)
        return self._asked_else(pair, rng) if asked_else else pair

    def _asked_else(self, pair: JudgedPair, rng: np.random.Generator) -> JudgedPair:
        # Whether a pair's own sentence is its clip's is not known of one that was asked for something else before.
        others = [task for task in self._sentences if task != _task(pair.group_id)]
        if not others or pair.kind == f"degraded/{_ASKED_ELSE.name}":
            return pair
        told = self._sentences[others[rng.integers(len(others))]]
        scores = _ASKED_ELSE.scores(pair.scores, 1.0)
        return replace(pair, instruction=told[rng.integers(len(told))], scores=scores)


def _spoiled(pair: JudgedPair, rng: np.random.Generator) -> JudgedPair:
    done = pair.provenance.get("done")
    of_the_event = [d for d in _FREE if d.name in _OF_THE_EVENT]
    # They are learned last, and so are drawn twice as often.
    rules = [d for d in _FREE if d not in of_the_event] if done == 0 else [*_FREE, *of_the_event]
    rule, strength = rules[rng.integers(len(rules))], float(rng.choice(_STRENGTHS))
    material = Material(done=done)
    made = degrade(rule.name, pair.frames, pair.instruction, pair.scores, strength, rng, material)
    return replace(pair, frames=made.frames, scores=made.scores)


def _task(group_id: str) -> str:
    return group_id.rsplit("/", 1)[0]
