"""The table that compares methods: mean and standard deviation per dimension and in total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.pairs import PairStore
from roboalign_ray.judge.rubric import check_scores, names


@dataclass(frozen=True)
class MethodRow:
    """One row of the table.

    Attributes:
        method: kind of its pairs, with the store's name if several stores are compared.
        videos: number of videos.
        mean, std: float64 [7], six dimensions and the total, in rubric points; std is the population standard
            deviation.
    """

    method: str
    videos: int
    mean: np.ndarray
    std: np.ndarray

    def as_json(self) -> dict[str, object]:
        """Figures by dimension."""
        figures = {
            name: {"mean": float(mean), "std": float(std)}
            for name, mean, std in zip((*names(), "total"), self.mean, self.std, strict=True)
        }
        return {"method": self.method, "videos": self.videos, **figures}


def method_row(method: str, scores: np.ndarray) -> MethodRow:
    """The row for scores [N, 6].

    Raises:
        UserError: there are no scores, or they do not fit the rubric.
    """
    if not len(scores):
        raise UserError("has no scored video", where=method)
    points = check_scores(scores, method).astype(np.float64)
    columns = np.concatenate([points, points.sum(axis=1, keepdims=True)], axis=1)
    return MethodRow(method, len(points), columns.mean(axis=0), columns.std(axis=0))


def method_table(stores: Mapping[str, PairStore], split: str | None = None) -> list[MethodRow]:
    """One row per kind and store, best total first.

    Args:
        stores: stores by name.
        split: "train" or "held_out"; None takes all pairs.
    """
    rows = []
    for name, store in stores.items():
        numbers = range(len(store)) if split is None else store.split(split)
        kinds = sorted({store.kinds[number] for number in numbers})
        for kind in kinds:
            chosen = [number for number in numbers if store.kinds[number] == kind]
            method = kind if len(stores) == 1 else f"{name}: {kind}"
            rows.append(method_row(method, store.scores[chosen]))
    return sorted(rows, key=lambda row: -row.mean[-1])


def table_cells(rows: Sequence[MethodRow]) -> list[list[str]]:
    """The table's cells as text: method, videos, six dimensions and the total as "mean ± std"."""
    cells = [["method", "videos", *names(), "total"]]
    for row in rows:
        figures = (f"{mean:.2f} ± {std:.2f}" for mean, std in zip(row.mean, row.std, strict=True))
        cells.append([row.method, str(row.videos), *figures])
    return cells
