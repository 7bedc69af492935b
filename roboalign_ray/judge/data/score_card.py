"""The card of a folder of scores: counts, means and histograms."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.foundation.storage.files import flush, whole_file
from roboalign_ray.foundation.storage.shards import write_json
from roboalign_ray.judge.data.score_record import read_record
from roboalign_ray.judge.data.score_store import final_scores, read_quarantine
from roboalign_ray.judge.rubric import DIMENSIONS

CARD = "card.json"
BINS = 20  # of a histogram, from 0 to the maximum of its dimension


def write_card(folder: Path, **more: Any) -> dict[str, Any]:
    """Count what a folder holds, write it to `card.json`, and return it.

    Args:
        more: further entries.
    """
    table, manifest = final_scores(folder), read_record(folder)
    quarantined = read_quarantine(folder)
    limits = {**{dimension.name: dimension.maximum for dimension in DIMENSIONS}, "total": 10}
    card = {
        **manifest,
        "clips": len(table),
        "by_judge": {entry["values"]: entry["counts"] for entry in table["judge"].value_counts().to_pylist()},
        "quarantined": len(quarantined),
        "histograms": {name: histogram(table[name].to_numpy(), most) for name, most in limits.items()},
        "mean": {name: float(np.mean(table[name].to_numpy())) if len(table) else None for name in limits},
        **more,
    }
    with whole_file(folder / CARD) as draft:
        write_json(draft, card)
        flush(draft)
    return card


def histogram(values: Iterable[float] | np.ndarray, most: float) -> dict[str, list[float]]:
    """Edges [BINS + 1] and counts [BINS] from 0 to `most`; values beyond count in the last bins."""
    counts, edges = np.histogram(np.clip(np.asarray(values, np.float64), 0, most), BINS, (0, most))
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}
