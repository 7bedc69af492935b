"""Fresh rollouts shown to a teacher: rollouts in, judged pairs out, each with what was seen on the way.

    rollout ──► decode ──► clip behind its start frame ──► teacher ──► JudgedPair, or why there is none
                           and its real continuation

RoboAlign-R1 (arXiv 2605.03821) labels new rollouts in this way, every K policy updates. A vision-language teacher sees
only the clip; the privileged teacher also gets the real continuation and the simulator's labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.bench.pair_maker import PairMaker, SourceClip
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.judge.protocol import Judgement, JudgeRequest, TeacherJudge
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.judge.student.model import with_start
from roboalign_ray.judge.validation.alarms import motion_share
from roboalign_ray.world_model.protocol import Decoder, Rollout, first_view

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Annotation:
    """The annotation of one sample.

    Attributes:
        pair_id: derived from prompt, seed and weight version: the same sample has the same id in every run.
        pair: the labelled clip, or the reason why there is none.
        motion: motion of the clip as a share of the real clip's; NaN if nothing real moves or there is no real clip.
        rationale: the teacher's rationale.
    """

    pair_id: str
    pair: JudgedPair | Failed
    motion: float = float("nan")
    rationale: str = ""

    @property
    def scores(self) -> np.ndarray:
        """Float64 [6], rubric points; NaN if the sample has no label."""
        if isinstance(self.pair, Failed):
            return np.full(len(DIMENSIONS), np.nan)
        return self.pair.scores.astype(np.float64)


class RolloutAnnotator:
    """Labels samples of rollout groups.

    Args:
        teacher: gives the scores.
        decoder: of the world model that made the rollouts.
        maker: reads real clips; they are cut to one frame more than a rollout has.
    """

    def __init__(self, teacher: TeacherJudge, decoder: Decoder, maker: PairMaker) -> None:
        self.teacher, self.decoder, self.maker = teacher, decoder, maker

    def annotate(self, groups: Sequence[Rollout], samples: Sequence[Sequence[int]]) -> list[Annotation]:
        """Label `samples[i]`, positions within group i; group after group, in order."""
        clips: list[tuple[str, JudgedPair | Failed, JudgeRequest | None, float]] = []
        for group, wanted in zip(groups, samples, strict=True):
            clips += self._clips(group, wanted)
        requests = [request for _, _, request, _ in clips if request is not None]
        outcomes = iter(self.teacher.judge(requests) if requests else ())
        found = []
        for name, pair, request, motion in clips:
            outcome = next(outcomes) if request is not None else None
            found.append(self._annotation(name, pair, outcome, motion))
        return found

    def _annotation(
        self,
        name: str,
        pair: JudgedPair | Failed,
        outcome: Judgement | Failed | None,
        motion: float,
    ) -> Annotation:
        if isinstance(pair, Failed) or outcome is None:
            return Annotation(name, pair, motion)
        if isinstance(outcome, Failed):
            return Annotation(name, outcome, motion)
        return Annotation(name, labelled(pair, outcome, self.teacher.name), motion, outcome.rationale or "")

    def _clips(
        self, group: Rollout, wanted: Sequence[int]
    ) -> list[tuple[str, JudgedPair | Failed, JudgeRequest | None, float]]:
        names = [sample_id(group.prompt_id, group.seeds[n], group.versions) for n in wanted]
        try:
            source = self._source(group)
            videos = with_start(source.window.frames[0], first_view(self.decoder.decode(group)))
        except (EpisodeError, UserError) as error:
            failed = Failed(error.line(), "episode")
            return [(name, failed, None, float("nan")) for name in names]
        return [self._clip(name, group, source, videos[n]) for name, n in zip(names, wanted, strict=True)]

    def _source(self, group: Rollout) -> SourceClip:
        episode_id, _, window = group.prompt_id.rpartition("@")
        start = int(window.partition("+")[0])  # the horizon follows if groups have different horizons
        return self.maker.source(episode_id, start, frames=1 + group.horizon)

    def _clip(
        self, name: str, group: Rollout, source: SourceClip, frames: np.ndarray
    ) -> tuple[str, JudgedPair | Failed, JudgeRequest, float]:
        pair = JudgedPair(
            pair_id=name,
            group_id=source.group_id,
            frames=frames,
            fps=source.fps,
            instruction=group.instruction,
            scores=np.zeros(len(DIMENSIONS), np.float32),  # replaced by the teacher's scores, or dropped
            annotator=UNLABELLED,
            kind="rollout/fresh",
            provenance=source.provenance | {"versions": list(group.versions)},
        )
        request = JudgeRequest(frames, source.fps, group.instruction, source.reference, name)
        return name, pair, request, motion_share(frames, source.window.frames)


def sample_id(prompt_id: str, seed: int, versions: Sequence[int]) -> str:
    """The id of one sample of a rollout group."""
    return f"rollout/fresh/{prompt_id}/{seed}/v{'-'.join(map(str, versions))}"


def labelled(pair: JudgedPair, judgement: Judgement, teacher: str) -> JudgedPair:
    """The pair with a teacher's scores; deviation, rationale and failed answers are stored in the provenance."""
    about: dict[str, Any] = {
        "std": [round(float(value), 4) for value in judgement.std],
        "answers": len(judgement.samples),
        "failed_answers": len(judgement.failures),
        "rationale": judgement.rationale,
    }
    if pair.annotator != UNLABELLED:
        about["before"] = {"annotator": pair.annotator, "scores": pair.scores.tolist()}
    return replace(
        pair,
        scores=judgement.scores.astype(np.float32),
        annotator=teacher,
        provenance={**pair.provenance, "teacher": about},
    )
