"""From scored rollouts of a diffusion world model to micro-batches of noisy clips.

A row is one clip of one sample at one noise level. Which clips, which levels and which noise are functions of the
samples' seeds: every rank draws the same without talking, and a resumed run draws the same without a state. An
objective that needs the noise that a clip was sampled from draws its rows itself (`Draw`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.alignment.advantages import GroupAdvantages
from roboalign_ray.alignment.objectives.spread import spread_figures
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config.alignment_diffusion import DiffusionAlignmentConfig
from roboalign_ray.world_model.diffusion.conditioning import Inputs
from roboalign_ray.world_model.diffusion.denoising import residual_of
from roboalign_ray.world_model.diffusion.files import DenoiserFolder
from roboalign_ray.world_model.diffusion.noise_schedule import noisy, times
from roboalign_ray.world_model.diffusion.rollout import diffusion_payload
from roboalign_ray.world_model.diffusion.training_clips import TrainingClip, training_clips

_TENSORS = ("state", "clean", "time", "weights", "live")
_INPUTS = ("history", "reference", "actions", "level")
_CLIPS, _ROW = 1, 2  # streams of random numbers; those of the sampler are of another kind

Weigh = Callable[[np.ndarray], np.ndarray]  # advantages [K] of a clip's valid samples to what the loss takes
# A sample's seed and a clip to the noise level and the noise [V, n, 3, H, W] of its row.
Draw = Callable[[int, TrainingClip], tuple[float, Tensor]]


@dataclass(frozen=True)
class Origin:
    """Where a row comes from.

    Attributes:
        seed: of its sample.
        first: number of its clip's first frame.
        version: of the weights that generated the clip.
    """

    seed: int
    first: int
    version: int


@dataclass(frozen=True)
class ClipBatch:
    """Rows of one micro-batch.

    Attributes:
        state, clean: noisy and clean states [B, V, n, 3, H, W].
        time: [B].
        inputs: what the denoiser sees beside.
        weights: [B], of `Weigh`.
        live: [B], 0 for a row that only keeps the ranks in step.
        origins: of each row.
        old, base: clean states of the old policy and of the base; empty until they were asked.
        figures: numbers of the whole step, which one micro-batch of all ranks carries.
    """

    state: Tensor
    clean: Tensor
    time: Tensor
    inputs: Inputs
    weights: Tensor
    live: Tensor
    origins: tuple[Origin, ...] = ()
    old: Tensor = field(default_factory=lambda: torch.empty(0))
    base: Tensor = field(default_factory=lambda: torch.empty(0))
    figures: dict[str, float] = field(default_factory=dict)

    def silenced(self) -> ClipBatch:
        """The first row with nothing to learn from."""
        return replace(_taken(self, slice(0, 1)), live=torch.zeros(1), figures={})


def clip_batches(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[GroupAdvantages],
    folder: DenoiserFolder,
    config: DiffusionAlignmentConfig,
    weigh: Weigh,
    *,
    draw: Draw | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[list[ClipBatch], int]:
    """This rank's micro-batches, equally many on every rank, and the rows of all ranks.

    Args:
        groups: of one step, at least one sample of one group valid.
        folder: of the world model; how frames and actions become what its denoiser sees.
        weigh: see `Weigh`; asked per clip.
        draw: None draws `times_per_clip` rows for each clip and sample, as the config says; otherwise it makes the one.
    """
    own: list[ClipBatch] = []
    first, count = None, 0
    for group, values in zip(groups, advantages, strict=True):
        for clip in _chosen_clips(group, values, folder, config):
            rows = [
                (sample, weight, number)
                for sample, weight in _weights(clip, values, weigh)
                for number in range(1 if draw else config.times_per_clip)
            ]
            mine = [row for place, row in enumerate(rows, count) if place % ranks == rank]
            count += len(rows)
            if mine:
                own.append(_batch(group, clip, mine, folder, config, draw))
            elif first is None:
                first = _batch(group, clip, rows[:1], folder, config, draw).silenced()
    size = config.micro_batch_clips
    longest = math.ceil(math.ceil(count / ranks) / size)  # rank 0 has the most rows
    batches = _of_size(own, size)
    filler = batches[0].silenced() if batches else first
    assert filler is not None  # a step has a valid sample, and every rollout a clip
    batches += [filler] * (longest - len(batches))
    if not rank:
        batches[0] = replace(batches[0], figures=spread_figures(groups))
    return batches, count


def _chosen_clips(
    group: ScoredGroup, advantages: GroupAdvantages, folder: DenoiserFolder, config: DiffusionAlignmentConfig
) -> Iterator[TrainingClip]:
    """The clips of a group that are trained on, in order; none where no sample is valid."""
    if not advantages.valid.any():
        return
    clips = list(training_clips(diffusion_payload(group.rollout), folder.denoiser, folder.scaling))
    wanted = config.clips_per_rollout or len(clips)
    generator = _generator(_CLIPS, *group.rollout.seeds)
    for number in sorted(generator.permutation(len(clips))[:wanted].tolist()):
        yield clips[number]


def _weights(clip: TrainingClip, advantages: GroupAdvantages, weigh: Weigh) -> list[tuple[int, float]]:
    """(sample, weight) of the valid samples; with credit by frame a clip's advantage is the mean of its frames'."""
    values = advantages.values
    if values.ndim == 2:
        values = values[:, clip.first : clip.first + clip.clean.shape[2]].mean(1)
    valid = np.flatnonzero(advantages.valid)
    return list(zip(valid.tolist(), weigh(values[valid]).tolist(), strict=True))


def _batch(
    group: ScoredGroup,
    clip: TrainingClip,
    rows: Sequence[tuple[int, float, int]],
    folder: DenoiserFolder,
    config: DiffusionAlignmentConfig,
    draw: Draw | None,
) -> ClipBatch:
    """Rows (sample, weight, number of the draw) of one clip."""
    samples = [sample for sample, _, _ in rows]
    inputs = _inputs(clip.inputs, samples)
    clean = residual_of(clip.clean[samples], inputs, folder.noise.residual_scale)
    steps, seeds = diffusion_payload(group.rollout).sampling.steps, group.rollout.seeds
    drawn = [
        draw(seeds[sample], clip) if draw else _draw(seeds[sample], clip, number, steps, config)
        for sample, _, number in rows
    ]
    time = torch.tensor([moment for moment, _ in drawn])
    noise = torch.stack([values for _, values in drawn])
    return ClipBatch(
        state=noisy(clean, noise, time),
        clean=clean,
        time=time,
        inputs=inputs,
        weights=torch.tensor([weight for _, weight, _ in rows]),
        live=torch.ones(len(rows)),
        origins=tuple(Origin(seeds[sample], clip.first, clip.version) for sample in samples),
    )


def _draw(
    seed: int, clip: TrainingClip, number: int, steps: int, config: DiffusionAlignmentConfig
) -> tuple[float, Tensor]:
    """Noise level and noise of one row."""
    generator = _generator(_ROW, seed, clip.first, number)
    if config.times == "sampler":
        time = times(steps)[int(generator.integers(steps))]
    else:
        time = float(generator.uniform(config.least_time, 1.0))
    return time, torch.from_numpy(generator.standard_normal(clip.clean.shape[1:], np.float32))


def _generator(*stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(stream))


def _of_size(batches: Sequence[ClipBatch], size: int) -> list[ClipBatch]:
    """The same rows, `size` a batch."""
    if not batches:
        return []
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(batch, name) for batch in batches]) for name in _TENSORS
    }
    inputs = {name: torch.cat([getattr(batch.inputs, name) for batch in batches]) for name in _INPUTS}
    origins = tuple(origin for batch in batches for origin in batch.origins)
    whole = ClipBatch(**tensors, inputs=Inputs(**inputs), origins=origins)
    return [_taken(whole, slice(start, start + size)) for start in range(0, len(whole.time), size)]


def _taken(batch: ClipBatch, rows: slice) -> ClipBatch:
    some = {name: getattr(batch, name)[rows] for name in _TENSORS}
    return replace(batch, **some, inputs=_inputs(batch.inputs, rows), origins=batch.origins[rows])


def _inputs(inputs: Inputs, rows: slice | Sequence[int]) -> Inputs:
    return Inputs(**{name: getattr(inputs, name)[rows] for name in _INPUTS})
