"""Failures as values and as clear words.

Two kinds live here. `UserError` is raised for bad input: it carries one line that says what is wrong, where, and
what to do, and the command line turns it into that line and exit code 2. `Failed` is a value: a sample, score or
reply that could not be produced. It travels next to successes and is never turned into a number.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Bad input, told in one line.

    Args:
        what: what is wrong, as a short clause ("unknown key 'hiden_size'").
        where: the file, key, episode or option it was found in.
        remedy: what to do about it.
        details: lines that are shown above that one, such as a table; most have none.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", details: str = "") -> None:
        self.what, self.where, self.remedy, self.details = what, where, remedy, details
        super().__init__(self.line())

    def line(self) -> str:
        """The one line a person reads."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return " ".join((f"{text}; {self.remedy}" if self.remedy else text).split())

    def __reduce__(self):
        # Exceptions cross process boundaries (Ray); keep the keyword-only parts through pickling.
        return (_rebuild_user_error, (type(self), self.what, self.where, self.remedy, self.details))


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _rebuild_user_error(cls: type[UserError], what: str, where: str, remedy: str, details: str) -> UserError:
    return cls(what, where=where, remedy=remedy, details=details)


@dataclass(frozen=True)
class Failed:
    """A result that could not be produced. Never converted to 0.0: whoever meets one counts it and leaves it out.

    Attributes:
        reason: one line, fit for a log or a table.
        kind: a short machine-readable class, such as "decode", "timeout", "nan".
    """

    reason: str
    kind: str = "error"
