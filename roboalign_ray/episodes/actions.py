"""Actions under a stride, and as bins.

Naming decides how an action dimension behaves when frames are skipped: names that begin with "delta" are increments
and are summed over the frames skipped; all others are absolute targets or commands, of which the last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def delta_dims(action_names: Sequence[str]) -> np.ndarray:
    """bool [A]: which dimensions are increments, told by their names."""
    return np.array([name.lower().startswith("delta") for name in action_names], dtype=bool)
