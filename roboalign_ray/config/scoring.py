"""Scoring of many clips: sizes of the pools, of batches and of files, and the teacher's share. All values are [ours].

The resources of a student are those of `cluster.scorer`; teachers are the pool of `cluster.teacher`.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig


class ScoringConfig(FrozenConfig):
    """One scoring job.

    Attributes:
        decode_min, decode_max: limits of the pool of actors that read clips.
        decode_cpus: CPUs of each of them.
        judge_min, judge_max: limits of the pool of students.
        in_flight: blocks that an actor has at hand; a longer queue than that makes its pool grow.
        clips_per_block: clips that one actor reads in one call.
        block_mb: decoded clips are handed on in blocks of at most about this size, in MB.
        batch: maximum of clips judged together.
        retries: further attempts at a block whose actor was lost; after that its clips are tried one by one.
        part: rows per file of scores.
        part_s: maximum age of a score that is not written yet, in seconds.
        largest_video_pixels: limit on the pixels of all frames of a clip.
        teacher_uncertainty: in two stages, the teacher sees clips whose total is more uncertain than this, in points.
        teacher_budget: in two stages, maximum of clips that the teacher sees, the most uncertain first.
        no_result_s: the job fails if no clip ends for this long, in seconds.
    """

    decode_min: PositiveInt = 1
    decode_max: PositiveInt = 4
    decode_cpus: float = Field(0.5, ge=0)
    judge_min: PositiveInt = 1
    judge_max: PositiveInt = 4
    in_flight: PositiveInt = 4
    clips_per_block: PositiveInt = 16
    block_mb: float = Field(32.0, gt=0)
    batch: PositiveInt = 16
    retries: NonNegativeInt = 2
    part: PositiveInt = 1024
    part_s: float = Field(30.0, gt=0)
    largest_video_pixels: PositiveInt = 2**27
    teacher_uncertainty: float = Field(0.5, ge=0)
    teacher_budget: NonNegativeInt = 1000
    no_result_s: float = Field(1800.0, gt=0)

    @model_validator(mode="after")
    def _check_pools(self) -> ScoringConfig:
        for pool in ("decode", "judge"):
            least, most = getattr(self, f"{pool}_min"), getattr(self, f"{pool}_max")
            if least > most:
                raise ConfigError(
                    f"{pool}_min {least} is larger than {pool}_max {most}",
                    where="scoring",
                    remedy="change one of them",
                )
        return self
