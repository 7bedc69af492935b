"""Assessment of a trained student: calibration, agreement with labels compared with baselines, and the reward gate.

It runs on the student's device and reads a few held-out pairs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from roboalign_ray.config import DistillationConfig, GateConfig, JobConfig, JudgeConfig, StudentConfig
from roboalign_ray.judge.data.label_store import LabelledPairs
from roboalign_ray.judge.rubric import names, normalise
from roboalign_ray.judge.student.calibration import calibration_error, fit_calibration
from roboalign_ray.judge.student.clips import prepare_clips
from roboalign_ray.judge.student.model import Student
from roboalign_ray.judge.validation.agreement import Agreement, agreement, agreement_table
from roboalign_ray.judge.validation.baselines import NO_INSTRUCTION, ConstantJudge, pixel_l1_scores
from roboalign_ray.judge.validation.gate import TOTAL_RANGE, GateResult, run_gate
from roboalign_ray.judge.validation.trials import GateClip, Question

REAL = "real"
_BATCH = 32
_FULL_MARKS = 0.95  # a real clip with at least this share of all points counts as correct


@dataclass(frozen=True)
class Assessment:
    """The results of an assessment.

    Attributes:
        agreements: the student, then the baselines.
        calibration_error: per dimension, in shares: (before, after) calibration, on pairs it was not fitted on.
        gate: None for a text-blind student, which must not give rewards.
    """

    agreements: tuple[Agreement, ...]
    calibration_error: tuple[np.ndarray, np.ndarray]
    gate: GateResult | None

    @property
    def agreement_table(self) -> str:
        """The agreements as a Markdown table."""
        return agreement_table(self.agreements)

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        before, after = self.calibration_error
        return {
            "agreement": [judge.as_json() for judge in self.agreements],
            "calibration_error": {
                name: {"before": float(b), "after": float(a)}
                for name, b, a in zip(names(), before, after, strict=True)
            },
            "gate": self.gate.as_json() if self.gate else None,
        }


def assess_student(
    student: Student,
    config: JobConfig,
    pairs: LabelledPairs,
    fitted: np.ndarray,
    measured: np.ndarray,
    *,
    text_blind: bool = False,
) -> Assessment:
    """Calibrate the student, which keeps the calibration, and measure it.

    Args:
        fitted, measured: positions of held-out pairs for calibration and measurement, with disjoint groups.
        text_blind: whether the student was trained without instructions, and is tested without them.

    Raises:
        UserError: there are too few pairs for calibration, or no real clip for the gate.
    """
    settings, heard = config.judge.distillation, NO_INSTRUCTION if text_blind else None
    calibrate(student, settings, pairs, fitted, instruction=heard)
    shares, std = student.raw_shares(clip_batches(pairs, measured, student.config, heard))
    labels = pairs.scores[measured].astype(float)
    calibrated = student.calibrated(shares, std).scores
    judged = {"text-blind student" if text_blind else "student": calibrated}
    judged |= _baseline_scores(student, pairs, measured, hidden=not text_blind, settings=config)
    groups = [pairs.group_ids[n] for n in measured]
    agreements = tuple(
        agreement(name, s, labels, groups, resamples=settings.bootstrap_resamples, seed=config.judge.seed)
        for name, s in judged.items()
    )
    truth = normalise(labels)
    errors = calibration_error(shares.clip(0, 1), truth), calibration_error(normalise(calibrated), truth)
    return Assessment(agreements, errors, None if text_blind else try_student(student, config.judge, pairs))


def calibrate(
    student: Student,
    config: DistillationConfig,
    pairs: LabelledPairs,
    fitted: np.ndarray,
    *,
    instruction: str | None = None,
) -> None:
    """Fit the student's calibration on these positions; `instruction` replaces the pairs' instructions."""
    shares, std = student.raw_shares(clip_batches(pairs, fitted, student.config, instruction))
    truth = normalise(pairs.scores[fitted]).astype(float)
    student.calibration = fit_calibration(shares, truth, std, config.calibration)


def try_student(student: Student, config: JudgeConfig, pairs: LabelledPairs) -> GateResult:
    """The reward gate on real clips of the held-out groups.

    Raises:
        UserError: there is no real clip among the pairs.
    """
    held_out = pairs.split("held_out", config.distillation.held_out_fraction)
    clips = gate_clips(pairs, held_out, config.gate)

    def judge(questions: Sequence[Question]) -> np.ndarray:
        return student.score([q.frames for q in questions], [q.instruction for q in questions]).totals

    return run_gate(judge, clips, config.gate, name="student", seed=config.seed)


def gate_clips(
    pairs: LabelledPairs, positions: Sequence[int] | np.ndarray, config: GateConfig
) -> list[GateClip]:
    """Real clips that show their task being done, taken in turn from each instruction.

    Each comes with the frames that other actions led to, if a pair of its group shows a different outcome. Clips with
    full points are preferred, since the others may leave less room than the gate's gap; if none has full points, any
    clip is used.
    """
    clips = []
    for real, other in gate_positions(pairs, positions, config):
        pair = pairs.read(real)
        frames = None if other is None else pairs.read(other).frames
        clips.append(GateClip(pair.pair_id, pair.frames, pair.instruction, frames, pair.group_id))
    return clips


def gate_positions(
    pairs: LabelledPairs, positions: Sequence[int] | np.ndarray, config: GateConfig
) -> list[tuple[int, int | None]]:
    """Positions of the real clips of `gate_clips`, and of the clips that other actions led to (or None)."""
    spare = config.smallest_gap * TOTAL_RANGE
    wrong: dict[str, list[int]] = {}
    for n in map(int, positions):
        other = "wrong_actions" in pairs.kinds[n] or pairs.kinds[n].startswith("counterfactual/")
        if other and pairs.scores[n].sum() <= TOTAL_RANGE - spare:
            wrong.setdefault(pairs.group_ids[n], []).append(n)
    real = [n for n in map(int, positions) if pairs.kinds[n] == REAL]
    faultless = [n for n in real if pairs.scores[n].sum() >= _FULL_MARKS * TOTAL_RANGE]
    by_instruction: dict[str, list[int]] = {}
    for n in faultless or real:
        by_instruction.setdefault(pairs.instructions[n], []).append(n)
    depth = max(map(len, by_instruction.values()), default=0)
    turns = [group[turn] for turn in range(depth) for group in by_instruction.values() if turn < len(group)]
    # A clip whose task was done before it begins looks equally good reversed, so it is the last choice.
    shown: list[tuple[int, int | None]] = []
    afterwards: list[tuple[int, int | None]] = []
    for n in turns:
        if len(shown) == config.clips:
            break
        # The worst one, since some variants of the actions still solve the task.
        worst = min(
            wrong.get(pairs.group_ids[n], []), key=lambda other: pairs.scores[other].sum(), default=None
        )
        late = pairs.read(n).provenance.get("done") == 0
        (afterwards if late else shown).append((n, worst))
    return shown or afterwards[: config.clips]


def clip_batches(
    pairs: LabelledPairs, positions: np.ndarray, config: StudentConfig, instruction: str | None = None
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield prepared clips with their instructions (or one `instruction` for all), a few pairs at a time."""
    for first in range(0, len(positions), _BATCH):
        read = [pairs.read(int(n)) for n in positions[first : first + _BATCH]]
        instructions = [instruction or pair.instruction for pair in read]
        yield prepare_clips([pair.frames for pair in read], config), instructions


def _baseline_scores(
    student: Student, pairs: LabelledPairs, measured: np.ndarray, *, hidden: bool, settings: JobConfig
) -> dict[str, np.ndarray]:
    """Scores [N, 6] of the baselines."""
    train = pairs.split("train", settings.judge.distillation.held_out_fraction)
    found = {}
    if hidden:
        raw = student.raw_shares(clip_batches(pairs, measured, student.config, NO_INSTRUCTION))
        found["student, instruction hidden"] = student.calibrated(*raw).scores
    found["pixel L1"] = _pixel_scores(pairs, measured)
    found["constant mean"] = ConstantJudge(pairs.scores[train]).scores([None] * len(measured))
    return found


def _pixel_scores(pairs: LabelledPairs, measured: np.ndarray) -> np.ndarray:
    """Pixel scores against the real pair of the same group with the same first frame; NaN if there is none."""
    real: dict[str, list[int]] = {}
    for n in map(int, measured):
        if pairs.kinds[n] == REAL:
            real.setdefault(pairs.group_ids[n], []).append(n)
    read = lru_cache(_BATCH)(pairs.read)
    rows = []
    for n in map(int, measured):
        pair = read(n)
        began = pair.provenance.get("start")
        others = (read(other) for other in real.get(pair.group_id, []))
        reference = next((other.frames for other in others if other.provenance.get("start") == began), None)
        rows.append(pixel_l1_scores([pair.frames], [reference])[0])
    return np.stack(rows)
