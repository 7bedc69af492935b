"""How well a model reads actions on held-out clips, and the gate that it must pass before it may reward.

    per dimension   R², mean absolute and root mean square error in physical units, share of errors within one
                    predicted standard deviation
    trials          the commanded actions must be recovered better from a clip than from the same clip changed:
                    shuffled in time, frozen, replaced by another clip, replaced by noise

A model that reads the same actions from changed frames rewards what the frames do not show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from roboalign_ray.config.inverse_dynamics import InverseGateConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file
from roboalign_ray.foundation.storage.readers import read_object, validated
from roboalign_ray.inverse_dynamics.model import InverseModel
from roboalign_ray.inverse_dynamics.scaling import ActionNormaliser

MEASUREMENT = "measurement.json"
_WHAT = "measurement of an inverse dynamics model"
_LEAST_CLIPS = 2
_USUAL = 95  # percentile


class DimensionRow(BaseModel):
    """One dimension of the action.

    Attributes:
        name: with its unit in brackets.
        r2: share of variance explained; None if the dimension is constant in the held-out clips.
        mean_error, rms_error: mean absolute and root mean square error, in the dimension's unit.
        within: share of errors within one predicted standard deviation; 0.76 if errors follow a Laplace distribution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    r2: float | None
    mean_error: float
    rms_error: float
    within: float


class TrialRow(BaseModel):
    """One trial.

    Attributes:
        trial: what was done to the frames.
        clips: number of clips that move.
        exact, changed: root mean square errors of the actions read from the clips and from the changed ones, in
            standard deviations of the action; means over clips.
        wins: share of clips with the smaller error where they are not changed; ties count half.
        passed: whether `wins` is large enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: str
    clips: int
    exact: float
    changed: float
    wins: float
    passed: bool


class Measurement(BaseModel):
    """What a model reached on held-out clips.

    Attributes:
        actions: number of actions measured.
        uncertainty: 95th percentile of the predicted uncertainty of an action (`InverseModel.uncertainty`): what is
            usual for real frames.
        least_r2: what every weighted dimension must reach.
        dimensions, trials: the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    actions: int
    uncertainty: float
    least_r2: float
    dimensions: tuple[DimensionRow, ...]
    trials: tuple[TrialRow, ...]

    def faults(self, weights: Sequence[float] | None = None) -> list[str]:
        """Why the gate is closed; empty if it is open.

        Args:
            weights: weight of each dimension in the reward; a dimension of weight 0 is not asked for. None asks for
                all that change.
        """
        asked = (
            [1.0 if row.r2 is not None else 0.0 for row in self.dimensions] if weights is None else weights
        )
        found = [
            f"R² of {row.name} is {'not known' if row.r2 is None else f'{row.r2:.2f}'}"
            for row, weight in zip(self.dimensions, asked, strict=True)
            if weight > 0 and (row.r2 is None or row.r2 < self.least_r2)
        ]
        if not any(weight > 0 for weight in asked):
            found.append("no dimension is weighed that changes in the held-out clips")
        return found + [
            f"{row.trial}: own frames win in {row.wins:.0%} of {row.clips} clips"
            for row in self.trials
            if not row.passed
        ]

    def assert_open(self, where: str, weights: Sequence[float] | None = None) -> None:
        """Check that the model may reward.

        Raises:
            UserError: the gate is closed; the message has the first reasons, the details the tables.
        """
        if weights is not None and len(weights) != len(self.dimensions):
            raise UserError(
                f"{len(weights)} weights for {len(self.dimensions)} measured action dimensions", where=where
            )
        if faults := self.faults(weights):
            raise UserError(
                f"the gate of the inverse dynamics model is closed (R² at least {self.least_r2:g}): "
                + "; ".join(faults[:4]),
                where=where,
                remedy="train it longer or on more episodes; it must not reward as it is",
                details=self.table(),
            )

    def table(self) -> str:
        """Both tables as Markdown."""
        lines = [
            "| dimension | R² | mean error | rms error | within 1 std |",
            "|---|---|---|---|---|",
        ]
        for row in self.dimensions:
            r2 = "constant" if row.r2 is None else f"{row.r2:.3f}"
            lines.append(
                f"| {row.name} | {r2} | {row.mean_error:.4g} | {row.rms_error:.4g} | {row.within:.0%} |"
            )
        lines += ["", "| trial | clips | exact | changed | wins | |", "|---|---|---|---|---|---|"]
        for trial in self.trials:
            figures = f"{trial.exact:.2f} | {trial.changed:.2f} | {trial.wins:.0%}"
            verdict = "passed" if trial.passed else "FAILED"
            lines.append(f"| {trial.trial} | {trial.clips} | {figures} | {verdict} |")
        return "\n".join(lines) + "\n"

    def figures(self) -> dict[str, float]:
        """R² per dimension and wins per trial by name, and whether the gate is open for all dimensions."""
        r2 = {f"r2/{row.name}": row.r2 for row in self.dimensions if row.r2 is not None}
        wins = {f"wins/{row.trial}": row.wins for row in self.trials}
        return {**r2, **wins, "gate_open": float(not self.faults())}

    def save(self, folder: Path) -> None:
        """Write `measurement.json` into a folder."""
        with whole_file(Path(folder) / MEASUREMENT) as draft:
            draft.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Measurement:
        """The measurement in a model's folder.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = Path(folder) / MEASUREMENT
        remedy = "train the model again: it is measured at the end of its training"
        return validated(read_object(path, _WHAT, remedy=remedy), cls, _WHAT, where=str(path), remedy=remedy)


def measure(
    model: InverseModel, clips: np.ndarray, actions: np.ndarray, config: InverseGateConfig, *, seed: int = 0
) -> Measurement:
    """Measure a model on clips that it was not trained on.

    Args:
        model: the model.
        clips: uint8 [N, T + 1, V, H, W, 3], the model's views in its order.
        actions: float [N, T, A] in physical units; actions[:, t] leads from frame t to frame t + 1.
        config: thresholds.
        seed: of shuffles and noise.

    Raises:
        UserError: there are fewer than two clips.
    """
    if len(clips) < _LEAST_CLIPS:
        raise UserError(
            f"{len(clips)} held-out clips are too few to measure on", where="inverse_dynamics.gate.clips"
        )
    read = model.read(clips)
    rows = _dimension_rows(model, actions, read.actions, read.std)
    weight = np.array([row.r2 is not None for row in rows])
    moving = _motion(model.normaliser, actions, weight) >= config.moving
    exact = _errors(model, actions, read.actions, weight)
    trials = []
    for name, change in TRIALS.items():
        changed = change(clips, np.random.default_rng([seed, *name.encode()]))
        spoiled = _errors(model, actions, model.read(changed).actions, weight)
        trials.append(_trial_row(name, exact[moving], spoiled[moving], config.least_wins))
    return Measurement(
        actions=actions.shape[0] * actions.shape[1],
        uncertainty=float(np.percentile(model.uncertainty(read), _USUAL)),
        least_r2=config.least_r2,
        dimensions=rows,
        trials=tuple(trials),
    )


def r_squared(truth: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Share of the variance explained, per dimension.

    Args:
        truth, read: [N, A].

    Returns:
        float64 [A]; NaN where `truth` is constant.
    """
    spread = ((truth - truth.mean(0)) ** 2).sum(0)
    constant = spread < 1e-12 * len(truth)
    left = ((read - truth) ** 2).sum(0)
    return np.where(constant, np.nan, 1 - left / np.where(constant, 1.0, spread))


def _dimension_rows(
    model: InverseModel, actions: np.ndarray, read: np.ndarray, std: np.ndarray
) -> tuple[DimensionRow, ...]:
    truth, found, deviation = (part.reshape(-1, part.shape[-1]) for part in (actions, read, std))
    error = found - truth
    explained = r_squared(truth.astype(np.float64), found)
    return tuple(
        DimensionRow(
            name=label,
            r2=None if np.isnan(explained[dim]) else float(explained[dim]),
            mean_error=float(np.abs(error[:, dim]).mean()),
            rms_error=float(np.sqrt((error[:, dim] ** 2).mean())),
            within=float((np.abs(error[:, dim]) <= deviation[:, dim]).mean()),
        )
        for dim, label in enumerate(model.card.labels)
    )


def _motion(normaliser: ActionNormaliser, actions: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Root mean square of each clip's actions in standard deviations, around no motion for rates, else around their
    own mean, [N]."""
    around = np.where(normaliser.rates, 0.0, actions.mean(axis=1, keepdims=True))
    scaled = (actions - around) / normaliser.std * weight
    return np.sqrt((scaled**2).sum(-1).mean(-1) / max(1, weight.sum()))


def _errors(model: InverseModel, actions: np.ndarray, read: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Root mean square error of each clip in standard deviations, [N]."""
    scaled = (read - actions) / model.normaliser.std * weight
    return np.sqrt((scaled**2).sum(-1).mean(-1) / max(1, weight.sum()))


def _trial_row(name: str, exact: np.ndarray, changed: np.ndarray, least_wins: float) -> TrialRow:
    if not len(exact):
        return TrialRow(trial=name, clips=0, exact=0.0, changed=0.0, wins=0.0, passed=False)
    wins = float(((exact < changed) + 0.5 * (exact == changed)).mean())
    return TrialRow(
        trial=name,
        clips=len(exact),
        exact=float(exact.mean()),
        changed=float(changed.mean()),
        wins=wins,
        passed=wins >= least_wins,
    )


def _shuffled(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each clip's frames in another order, in which no frame keeps its place."""
    steps = clips.shape[1]
    mixed = [_derangement(steps, rng) for _ in range(len(clips))]
    return np.stack([clip[order] for clip, order in zip(clips, mixed, strict=True)])


def _derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(count)
    shifted = np.empty(count, np.int64)
    shifted[order] = np.roll(order, 1)  # a cycle through all places
    return shifted


def _frozen(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(clips[:, :1], clips.shape[1], axis=1)


def _other_clip(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.roll(clips, 1, axis=0)


def _noise(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, clips.shape, dtype=np.uint8)


TRIALS: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "shuffled in time": _shuffled,
    "frozen": _frozen,
    "another clip": _other_clip,
    "noise": _noise,
}
