"""The annotator actor: a teacher that labels rollouts. It decodes the rollouts itself, so no pixels are sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.actors.teacher import open_judge
from roboalign_ray.alignment.records.scored import ScoredGroup
from roboalign_ray.config import JobConfig
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.bench.pair_maker import PairMaker
from roboalign_ray.judge.data.pairs import encode_pair
from roboalign_ray.judge.online.rollout_annotator import Annotation, RolloutAnnotator
from roboalign_ray.world_model.prompts import prompt_spec
from roboalign_ray.world_model.registry import open_decoder


@dataclass(frozen=True)
class AnnotationRecord:
    """The numbers of one annotation, for the driver.

    Attributes:
        pair_id: id of the sample.
        scores: float64 [6], rubric points; NaN without a label.
        motion: motion of the sample, divided by that of the real clip.
        failed: why there is no label, or None.
    """

    pair_id: str
    scores: np.ndarray
    motion: float
    failed: Failed | None


class AnnotatorActor:
    """Labels samples of scored groups with the teacher of `judge.relabel.teacher`.

    Args:
        config: the job.
        world_model: folder; its weights are not read.
        threads: torch threads.
        tokenizer: folder; see `RolloutActor`.

    Raises:
        UserError: the teacher cannot be opened.
    """

    def __init__(
        self, config: JobConfig, world_model: Path, threads: int = 1, tokenizer: Path | None = None
    ) -> None:
        torch.set_num_threads(threads)
        self.config, self.world_model_folder, self.tokenizer_folder = config, world_model, tokenizer
        self._calls = 0

    @cached_property
    def _annotator(self) -> RolloutAnnotator:
        config = self.config
        decoder = open_decoder(self.world_model_folder, tokenizer=self.tokenizer_folder)
        card = decoder.card
        spec = prompt_spec(config.episodes, config.rollout.horizon, card.height, card.width)
        maker = PairMaker(open_store(config.episodes.store), spec, config.bench)
        return RolloutAnnotator(open_judge(config), decoder, maker)

    def ready(self) -> None:
        """Load everything.

        Raises:
            UserError: the teacher, the world model's folder or the store cannot be read.
        """
        _ = self._annotator

    def beat(self) -> int:
        """Number of completed calls. Called from another thread."""
        return self._calls

    def annotate(
        self, samples: Sequence[Sequence[int]], *groups: ScoredGroup
    ) -> tuple[list[dict[str, Any]], list[AnnotationRecord]]:
        """Label the samples `samples[i]` (positions) of group i.

        Returns:
            rows of the labelled pairs, in the format of `encode_pair`, and the numbers of all samples, in order.
        """
        self._calls += 1
        found = self._annotator.annotate([group.rollout for group in groups], samples)
        rows = [encode_pair(each.pair) for each in found if not isinstance(each.pair, Failed)]
        return rows, [_record(each) for each in found]


def _record(each: Annotation) -> AnnotationRecord:
    failed = each.pair if isinstance(each.pair, Failed) else None
    return AnnotationRecord(each.pair_id, each.scores, each.motion, failed)
