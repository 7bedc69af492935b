"""Lines on the terminal that are neither progress, result nor error."""

from __future__ import annotations

import sys
from functools import cache


def tell(line: str) -> None:
    """One such line, on standard error."""
    print(f"note: {line}", file=sys.stderr)


@cache
def tell_once(line: str) -> None:
    """As `tell`; a line that this process has printed is not printed again."""
    tell(line)
