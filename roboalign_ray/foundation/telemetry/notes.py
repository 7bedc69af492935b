"""Lines on the terminal that are neither progress, result nor error."""

from __future__ import annotations

import sys
from functools import cache


def tell(line: str) -> None:
    """One such line, on standard error."""
    print(f"note: {line}", file=sys.stderr)


@cache
def tell_once(line: str) -> None:
    """As `tell`; a line that this process has told already is not told again."""
    tell(line)
