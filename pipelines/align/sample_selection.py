"""Selects the samples of scored groups that the teacher labels. The driver holds only their numbers and references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.judge.online.rollout_annotator import sample_id
from roboalign_ray.pipelines.align.groups import Finished
from roboalign_ray.rewards.protocol import Scored
from roboalign_ray.rewards.student_judge import judged_scores


@dataclass(frozen=True)
class Sample:
    """One sample to be labelled: its place, its id, the student version that scored it, and that student's scores."""

    group: Finished
    place: int
    pair_id: str
    student: np.ndarray
    version: int


def spread_samples(groups: Sequence[Finished], count: int, version: int | None = None) -> list[Sample]:
    """At most `count` samples, spread evenly over all groups; samples that the student could not score are left out.

    Args:
        version: only samples that this student version scored; None accepts any.
    """
    everything = [
        Sample(
            group,
            place,
            sample_id(group.record.prompt_id, group.record.seeds[place], group.record.versions),
            scores,
            score.version,
        )
        for group in groups
        for place, score in enumerate(group.record.scores)
        if isinstance(score, Scored)
        and version in (None, score.version)
        and (scores := judged_scores(score)) is not None
    ]
    if len(everything) <= count:
        return everything
    places = np.linspace(0, len(everything) - 1, count).round().astype(int)
    return [everything[place] for place in places]
