"""Typing errors mended before an instruction is read: a word that nobody knows becomes the known one next to it.

A student that has learned from some hundred words knows nothing of a word with a slip in it, and no amount of training
on slips shows it all of them. The list of known words mostly shows which word was meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

WORD = re.compile(r"[^\W_]+")
_LEAST, _LEAST_SHORTENED = 4, 5  # letters of a known word; of one that a letter may be missing of
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def words_of(sentences: Iterable[str]) -> frozenset[str]:
    """All words, in small letters."""
    return frozenset(word for sentence in sentences for word in WORD.findall(sentence.lower()))


@lru_cache(maxsize=4096)
def mended(word: str, known: frozenset[str]) -> str:
    """The known word that was meant, where the word is not known and just one is a slip away.

    Slips: two neighbouring letters exchanged, a letter lost or doubled; where none of these leads to a known word, a
    letter exchanged for, or joined by, one beside it on the keyboard. The first letter must be right. Known words of
    four letters are not sought behind shorter ones: there, too many others are as close.

    Args:
        word: in small letters.
        known: words in small letters.
    """
    if word in known or len(word) < _LEAST:
        return word
    near = [k for k in known if k[0] == word[0] and len(k) >= _LEAST and abs(len(k) - len(word)) <= 1]
    for slip in (_mechanical, _beside):
        meant = [k for k in near if slip(k, word)]
        if meant:
            return meant[0] if len(meant) == 1 else word
    return word


def _mechanical(meant: str, typed: str) -> bool:
    """Exchanged, lost, or doubled."""
    if len(typed) == len(meant):
        return any(_exchanged(meant, n) == typed for n in range(1, len(meant) - 1))
    if len(typed) < len(meant):
        return len(meant) >= _LEAST_SHORTENED and _without_one(meant, typed, lambda n: True)
    return _without_one(typed, meant, lambda n: typed[n] == typed[n - 1])


def _beside(meant: str, typed: str) -> bool:
    """Exchanged for, or joined by, a key beside the right one."""
    if len(typed) == len(meant):
        wrong = [n for n in range(len(meant)) if meant[n] != typed[n]]
        return len(wrong) == 1 and _neighbours(meant[wrong[0]], typed[wrong[0]])
    if len(typed) < len(meant):
        return False
    around = f" {typed} "
    return _without_one(
        typed, meant, lambda n: _neighbours(typed[n], around[n]) or _neighbours(typed[n], around[n + 2])
    )


def _exchanged(word: str, n: int) -> str:
    return word[:n] + word[n + 1] + word[n] + word[n + 2 :]


def _without_one(longer: str, shorter: str, at: Callable[[int], bool]) -> bool:
    """Whether the longer word without one of its letters, not the first, is the shorter one."""
    return any(longer[:n] + longer[n + 1 :] == shorter and at(n) for n in range(1, len(longer)))


def _neighbours(a: str, b: str) -> bool:
    """Whether two keys are side by side in a row; " " is no key."""
    return any(abs(row.find(a) - row.find(b)) == 1 for row in _ROWS if a in row and b in row)
