"""Which samples of scored groups a teacher is shown: the driver knows their numbers, and where their tokens are."""

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
    """One sample to be labelled: where it is, its id, and what which version of the student said of it."""

    group: Finished
    place: int
    pair_id: str
    student: np.ndarray
    version: int


def spread_samples(groups: Sequence[Finished], count: int, version: int | None = None) -> list[Sample]:
    """At most `count` samples, evenly from all groups; those that the student could not score are left out.

    Args:
        version: of the student that scored them; None takes any.
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
