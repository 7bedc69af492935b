"""Paraphrases of an instruction, and instructions that contradict it.

A paraphrase must not change a judge's scores; a contradiction must. Both are made from templates and word lists for
the simulated tasks: simple English with a known meaning. Training and testing use different templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

_POLITE = (
    "please {}",
    "{}, please",
    "could you {}",
    "would you please {}",
    "kindly {}",
    "can you {}?",
    "I would like you to {}",
    "please {} now",
    "{}, thank you",
    "robot, please {}",
    "would you be so kind as to {}?",
    "I want you to {}.",
    "can you please {} for me?",
    "I need you to {}",
    "you are asked to {}",
    "do me a favour and {}",
    "it would be great if you could {}",
    "we ask you to {}",
    "would you mind and {}",
    "be so good and {}",
    "might I request that you {}",
)
_POLITE_TRIED = ("please {} now", "will you {}, please?", "I'd like you to {}, thanks", "may I ask you to {}")
_FILLERS = (
    "now {}",
    "okay, {}",
    "just {}",
    "{} now",
    "go ahead and {}",
    "your task is to {}",
    "the robot should {}",
    "next, {}",
    "first {}",
    "you have to {}",
    "the robot arm has to {}",
    "so, {} then",
    "let us {}",
    "try to {}",
    "carefully {}",
    "task: {}",
    "it is time to {}",
    "{} right away",
    "{} in one go",
    "hey robot {}",
    "{} with the gripper",
    "the aim is to {}",
    "what you must do is {}",
    "as a next step {}",
    "all you have to do is {}",
    "your mission: {}",
    "at this point {}",
    "{} without delay",
    "I say {}",
)
_FILLERS_TRIED = (
    "well, now {}",
    "alright, simply {}",
    "the job is to {}",
    "{} as soon as you can",
    "so {} here",
)
_NEGATIONS = (
    "do not {}",
    "don't {}",
    "never {}",
    "you must not {}",
    "do anything but {}",
    "avoid this: {}",
    "please do not {}",
    "make sure not to {}",
)
_NEGATIONS_TRIED = ("do not {}", "don't {} now", "never {}", "you should not {}")

# Valid only for words of the simulated tasks: elsewhere a "ball" need not be a football.
_SYNONYMS: Sequence[tuple[str, tuple[str, ...]]] = (
    ("pick up", ("lift up", "grab", "take")),
    ("coffee machine", ("coffee maker", "espresso machine")),
    ("red cylinder", ("puck", "red puck")),
    ("marked point", ("mark", "marked spot")),
    ("green dot", ("green point", "green spot")),
    ("all the way", ("completely", "fully")),
    ("open", ("open up",)),
    ("close", ("shut",)),
    ("closed", ("shut",)),
    ("shut", ("close",)),
    ("press", ("push",)),
    ("push", ("shove", "press")),
    ("pull", ("drag", "tug", "draw")),
    ("slide", ("move", "shift")),
    ("shove", ("push",)),
    ("grasp", ("grab", "grip")),
    ("take", ("grab",)),
    ("lift", ("raise",)),
    ("carry", ("bring", "move")),
    ("kick", ("shoot", "hit")),
    ("shoot", ("kick", "slide")),
    ("rotate", ("turn", "twist")),
    ("start", ("switch on", "turn on")),
    ("swing", ("pull",)),
    ("safe", ("strongbox", "vault")),
    ("plate", ("disc", "dish")),
    ("disc", ("plate",)),
    ("ball", ("football", "soccer ball")),
    ("football", ("ball",)),
    ("goal", ("net",)),
    ("net", ("goal",)),
    ("faucet", ("tap",)),
    ("tap", ("faucet",)),
    ("lever", ("handle",)),
    ("puck", ("red cylinder", "red puck")),
    ("target", ("mark", "target spot")),
    ("mark", ("target",)),
    ("table", ("table top", "desk")),
    ("brew", ("make",)),
)
_BETWEEN = (
    "by",
    "until",
    "into",
    "at",
    "on",
    "from",
    "along",
    "over",
    "to",
)  # first words of a phrase that can be moved
_OPPOSITES: Sequence[tuple[str, str]] = (
    ("pick up", "put down"),
    ("shut the open", "open the shut"),
    ("closed", "open"),
    ("close", "open"),
    ("shut", "open"),
    ("open", "close"),
    ("turn the faucet on", "turn the faucet off"),
    ("start", "stop"),
    ("let the water run", "stop the water"),
    ("pull the drawer out", "push the drawer in"),
    ("push the drawer back in", "pull the drawer out"),
    ("grasp", "let go of"),
    ("take", "leave"),
    ("press", "let go of"),
    ("push", "pull"),
    ("pull", "push"),
    ("slide", "lift"),
    ("shove", "lift"),
    ("kick", "hold"),
    ("shoot", "hold"),
)
_OBJECTS: Sequence[tuple[str, ...]] = (
    ("coffee machine", "coffee maker"),
    ("drawer",),
    ("window",),
    ("door",),
    ("faucet", "tap"),
    ("plate", "disc"),
    ("football", "ball"),
    ("red cylinder", "puck"),
    ("button",),
    ("lever", "handle"),
)

Rewording = Callable[[str, np.random.Generator, bool], str]
"""Arguments: the sentence, the generator, and whether the result is for testing (True) or training.

Returns the rewording.
"""


def taught_phrases() -> list[str]:
    """All that rewording and contradiction may bring into a sentence to train on."""
    frames = [frame.format("") for frame in (*_POLITE, *_FILLERS, *_NEGATIONS)]
    exchanged = [phrase for word, others in _SYNONYMS for phrase in (word, *others)]
    contrary = [phrase for pair in _OPPOSITES for phrase in pair]
    return [*frames, *exchanged, *contrary, *(name for group in _OBJECTS for name in group)]


def reworded(sentence: str, rng: np.random.Generator) -> str:
    """A paraphrase for training: one to three rewordings are applied in turn."""
    for name in rng.permutation(list(PARAPHRASES))[: rng.integers(1, 4)]:
        sentence = PARAPHRASES[name](sentence, rng, False)
    return sentence


def _framed(trained: Sequence[str], tried: Sequence[str]) -> Rewording:
    def rewording(sentence: str, rng: np.random.Generator, trial: bool) -> str:
        frames = tried if trial else trained
        return frames[int(rng.integers(len(frames)))].format(sentence)

    return rewording


def _case(sentence: str, rng: np.random.Generator, trial: bool) -> str:
    return (sentence.upper(), sentence.title(), sentence.capitalize())[rng.integers(3)]


def _punctuation(sentence: str, rng: np.random.Generator, trial: bool) -> str:
    signs = ("{}.", "{}!", "{}...", '"{}"', "- {}", "{}?", "({})", "{} !!", "* {};")
    return signs[rng.integers(len(signs))].format(sentence)


def _synonyms(sentence: str, rng: np.random.Generator, trial: bool) -> str:
    """Replace one or two words by synonyms from the lists, if any."""
    known = [pair for pair in _SYNONYMS if _holds(sentence, pair[0])]
    for number in rng.permutation(len(known))[: rng.integers(1, 3)]:
        word, others = known[number]
        sentence = _exchanged(sentence, word, others[rng.integers(len(others))])
    return sentence


def _order(sentence: str, rng: np.random.Generator, trial: bool) -> str:
    """Move the last phrase to the front: "by its handle, pull the drawer out"."""
    words = sentence.split()
    places = [n for n, word in enumerate(words) if n > 1 and word in _BETWEEN and n < len(words) - 1]
    if not places:
        return sentence
    place = places[-1]
    return f"{' '.join(words[place:])}, {' '.join(words[:place])}"


def _typo(sentence: str, rng: np.random.Generator, trial: bool) -> str:
    """Drop or double one letter of a long word, or exchange it with the next letter."""
    words = sentence.split()
    long = [n for n, word in enumerate(words) if len(word) >= 5]
    if not long:
        return sentence
    number = long[rng.integers(len(long))]
    word, place = words[number], int(rng.integers(1, len(words[number]) - 2))
    wrong = (
        word[:place] + word[place + 1 :],
        word[:place] + word[place] + word[place:],
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
    )
    words[number] = wrong[rng.integers(3)]
    return " ".join(words)


PARAPHRASES: dict[str, Rewording] = {
    "politeness": _framed(_POLITE, _POLITE_TRIED),
    "fillers": _framed(_FILLERS, _FILLERS_TRIED),
    "case": _case,
    "punctuation": _punctuation,
    "synonyms": _synonyms,
    "word_order": _order,
    "typos": _typo,
}


def negated(sentence: str, rng: np.random.Generator, trial: bool = False) -> str:
    """The negated instruction."""
    frames = _NEGATIONS_TRIED if trial else _NEGATIONS
    return frames[rng.integers(len(frames))].format(sentence)


def other_verb(sentence: str, rng: np.random.Generator, trial: bool = False) -> str | None:
    """The opposite action on the same object; None if the lists have none."""
    for word, contrary in _OPPOSITES:
        if _holds(sentence, word):
            return _exchanged(sentence, word, contrary)
    return None


def other_object(sentence: str, rng: np.random.Generator, trial: bool = False) -> str | None:
    """The same action on another object; None if no object of the lists is in the sentence."""
    named = [[name for name in group if _holds(sentence, name)] for group in _OBJECTS]
    own = next((n for n, names in enumerate(named) if names), None)
    if own is None:
        return None
    others = [group[0] for group, names in zip(_OBJECTS, named, strict=True) if not names]
    return _exchanged(sentence, named[own][0], others[rng.integers(len(others))])


CONTRADICTIONS: dict[str, Callable[[str, np.random.Generator, bool], str | None]] = {
    "negated": negated,
    "other_verb": other_verb,
    "other_object": other_object,
}


def _holds(sentence: str, words: str) -> bool:
    return re.search(rf"\b{words}\b", sentence, re.IGNORECASE) is not None


def _exchanged(sentence: str, words: str, others: str) -> str:
    return re.sub(rf"\b{words}\b", others, sentence, count=1, flags=re.IGNORECASE)
