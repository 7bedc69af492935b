"""Whether a clip is like those that a judge was trained on: it gives a number for any clip, but is meant for these.

Seventeen statistics of a clip's sampled frames (colours of the quarters, contrast, sharpness, motion) have a
Mahalanobis distance from those of the training clips (Mahalanobis, 1936; covariance shrunk towards its diagonal). The
bound is the distance that one in a hundred held-out clips passes. Length, frame rate and aspect of the training clips
stand beside it. The file lies in the judge's folder; of a judge without it nothing is known of its training clips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from roboalign_ray.foundation.failures import UserError, first_line
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import parse_json
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.student.clips import sampled_positions

FILE = "training_range.json"
_FORMAT = 1
_FRAMES, _SIDE, _PARTS = (
    8,
    64,
    2,
)  # sampled frames, their side in pixels, parts a side whose colours are taken
_SHRINKAGE = 0.05  # of the covariance towards its diagonal
_HELD_OUT_QUANTILE = 0.99
LEAST_PAIRS = 40  # on either side: with fewer, neither covariance nor bound mean anything
_MOST_PAIRS = 1000  # of either split
STATISTICS = 3 * _PARTS**2 + 3 + 2


@dataclass(frozen=True)
class Seen:
    """How a clip compares with the training clips.

    Attributes:
        distance: of its frames' statistics, as a multiple of the bound; up to 1 is inside.
        outside: what is outside, a short clause each; empty for a clip like those of training.
    """

    distance: float
    outside: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {"distance": self.distance, "outside": list(self.outside)}


@dataclass(frozen=True)
class TrainingRange:
    """What the clips that a judge was trained on were like.

    Attributes:
        mean: float64 [17], of their statistics.
        precision: float64 [17, 17], inverse of the shrunk covariance.
        bound: distance that one in a hundred held-out clips passes.
        ranges: least and largest "frames", "fps" and "aspect" (width by height).
        pairs: clips that all this was taken from.
    """

    mean: np.ndarray
    precision: np.ndarray
    bound: float
    ranges: dict[str, tuple[float, float]]
    pairs: int

    def compare(self, frames: np.ndarray, fps: float) -> Seen:
        """Hold a clip against the training clips.

        Args:
            frames: uint8 [T, H, W, 3].
            fps: frames per second.
        """
        distance = float(_distances(clip_statistics(frames)[None], self.mean, self.precision)[0]) / self.bound
        outside = []
        if distance > 1:
            outside.append(f"frames look unlike the training clips' ({distance:.1f} times the bound)")
        for name, value in _measures(frames, fps).items():
            least, most = self.ranges[name]
            if not least * 0.99 <= value <= most * 1.01:
                span = f"{least:.3g}" if math.isclose(least, most) else f"{least:.3g} to {most:.3g}"
                outside.append(f"{_NAMES[name]} {value:.3g} (training clips: {span})")
        return Seen(distance, tuple(outside))

    def save(self, folder: Path) -> None:
        """Write it beside a judge's weights."""
        content = {
            "format": _FORMAT,
            "pairs": self.pairs,
            "bound": self.bound,
            "ranges": {name: list(span) for name, span in self.ranges.items()},
            "mean": _rounded(self.mean),
            "precision": [_rounded(row) for row in self.precision],
        }
        with whole_file(folder / FILE) as draft:
            draft.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainingRange | None:
        """Read what `save` wrote; None where the judge has none.

        Raises:
            UserError: the file is damaged.
        """
        path = Path(folder) / FILE
        try:
            content = parse_json(path.read_bytes(), where=str(path), what="training range")
            mean, precision = np.array(content["mean"], float), np.array(content["precision"], float)
            ranges = {
                name: (float(content["ranges"][name][0]), float(content["ranges"][name][1]))
                for name in _NAMES
            }
            found = cls(mean, precision, float(content["bound"]), ranges, int(content["pairs"]))
            sizes = mean.shape == (STATISTICS,) and precision.shape == (STATISTICS, STATISTICS)
            numbers = [mean, precision, np.array([found.bound, *sum(ranges.values(), ())])]
            if content["format"] != _FORMAT or not sizes or not all(np.isfinite(n).all() for n in numbers):
                raise ValueError("unexpected contents")
            if not found.bound > 0:
                raise ValueError("the bound is not positive")
        except FileNotFoundError:
            return None
        except (UserError, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            said = error.what if isinstance(error, UserError) else f"cannot be read ({first_line(error)})"
            raise UserError(
                said,
                where=str(path),
                remedy="write it again with: roboalign assets range",
            ) from error
        return found


def fit_training_range(pairs: LabelledPairs, held_out_fraction: float) -> TrainingRange | None:
    """Take the range from the clips of a store of pairs: its train split, with the bound from its held-out split.

    Returns:
        None where either split has too few clips.
    """
    train, held_out = (_spread(pairs.split(name, held_out_fraction)) for name in ("train", "held_out"))
    if min(len(train), len(held_out)) < LEAST_PAIRS:
        return None
    seen, measures = _all_statistics(pairs, train)
    tried, others = _all_statistics(pairs, held_out)
    mean, covariance = seen.mean(axis=0), np.cov(seen, rowvar=False)
    spread = np.maximum(np.diag(covariance), 1e-6)
    precision = np.linalg.inv((1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(spread))
    bound = float(np.quantile(_distances(tried, mean, precision), _HELD_OUT_QUANTILE))
    both = measures + others
    ranges = {name: (min(m[name] for m in both), max(m[name] for m in both)) for name in _NAMES}
    return TrainingRange(mean, precision, bound, ranges, len(train) + len(held_out))


def clip_statistics(frames: np.ndarray) -> np.ndarray:
    """Colours of the quarters, contrast, sharpness and motion of sampled frames.

    Args:
        frames: uint8 [T, H, W, 3], T at least 2.

    Returns:
        float64 [17], each of the order of one.
    """
    positions = sampled_positions(len(frames), _FRAMES)
    both = np.concatenate([positions, np.maximum(positions - 1, 0)])
    pixels = torch.from_numpy(np.ascontiguousarray(frames[both].transpose(0, 3, 1, 2))).float() / 255
    if pixels.shape[-2:] != (_SIDE, _SIDE):
        pixels = F.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", antialias=True)
    shown, before = pixels[:_FRAMES], pixels[_FRAMES:]
    colours = F.adaptive_avg_pool2d(shown, _PARTS).mean(dim=0).flatten()
    contrast = shown.std(dim=(2, 3)).mean(dim=0)
    steps = (shown.diff(dim=2).abs().mean() + shown.diff(dim=3).abs().mean()) / 2
    motion = (shown - before).abs().mean()
    logs = torch.log(torch.stack([steps, motion]) + 1e-3) / 4
    return torch.cat([colours, contrast, logs]).double().numpy()


_NAMES = {"frames": "number of frames", "fps": "frame rate", "aspect": "width by height"}


def _measures(frames: np.ndarray, fps: float) -> dict[str, float]:
    return {"frames": float(len(frames)), "fps": float(fps), "aspect": frames.shape[2] / frames.shape[1]}


def _spread(positions: np.ndarray) -> np.ndarray:
    """At most `_MOST_PAIRS` of them, spread evenly: more take minutes to decode and change nothing."""
    count = min(len(positions), _MOST_PAIRS)
    return positions[np.linspace(0, len(positions) - 1, count).round().astype(int)] if count else positions


def _all_statistics(
    pairs: LabelledPairs, positions: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, list[dict]]:
    statistics, measures = [], []
    for number in positions:
        pair = pairs.read(int(number))
        statistics.append(clip_statistics(pair.frames))
        measures.append(_measures(pair.frames, pair.fps))
    return np.stack(statistics), measures


def _distances(statistics: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    apart = statistics - mean
    return np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", apart, precision, apart), 0))


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.7g}") for value in values]
