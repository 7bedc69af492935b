"""The annotator actor: a teacher that is shown rollouts. It decodes the tokens itself: no pixels travel to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
from roboalign_ray.world_model.prompts import prompt_spec
from roboalign_ray.world_model.token.codec import FrameCodec, decode_rollout


@dataclass(frozen=True)
class AnnotationRecord:
    """The numbers of one annotation, for the driver.

    Attributes:
        pair_id: of the sample.
        scores: float64 [6], rubric points; NaN without a label.
        motion: as a share of the real clip's.
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
        tokenizer: folder.
        threads: torch threads.

    Raises:
        UserError: the teacher cannot be opened.
    """

    def __init__(self, config: JobConfig, tokenizer: Path, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.config, self.tokenizer_folder = config, tokenizer
        self._calls = 0

    @cached_property
    def _annotator(self) -> RolloutAnnotator:
        config = self.config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = DualBranchTokenizer.load(self.tokenizer_folder).to(device)
        size = tokenizer.config
        spec = prompt_spec(config.episodes, config.rollout.horizon, size.height, size.width)
        maker = PairMaker(open_store(config.episodes.store), spec, config.bench)
        decode = partial(decode_rollout, codec=FrameCodec(tokenizer), codes=size.codes)
        return RolloutAnnotator(open_judge(config), decode, maker)

    def ready(self) -> None:
        """Load everything.

        Raises:
            UserError: the teacher, the tokenizer or the store cannot be read.
        """
        _ = self._annotator

    def beat(self) -> int:
        """A number that grows while work is done; may be asked for from another thread."""
        return self._calls

    def annotate(
        self, samples: Sequence[Sequence[int]], *groups: ScoredGroup
    ) -> tuple[list[dict[str, Any]], list[AnnotationRecord]]:
        """Label `samples[i]`, positions within group i.

        Returns:
            rows of the labelled pairs, as `encode_pair` makes them; and the numbers of all samples, in order.
        """
        self._calls += 1
        found = self._annotator.annotate([group.rollout for group in groups], samples)
        rows = [encode_pair(each.pair) for each in found if not isinstance(each.pair, Failed)]
        return rows, [_record(each) for each in found]


def _record(each: Annotation) -> AnnotationRecord:
    failed = each.pair if isinstance(each.pair, Failed) else None
    return AnnotationRecord(each.pair_id, each.scores, each.motion, failed)
