"""Rollouts of a world model as judged pairs: several refresh policies and temperatures, scored against real clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np

from roboalign_ray.config import RefreshConfig, RolloutConfig, SamplingConfig
from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.foundation.failures import Failed
from roboalign_ray.judge.bench.pair_maker import PairMaker, SourceClip
from roboalign_ray.judge.bench.plan import Proposal
from roboalign_ray.judge.data.pairs import JudgedPair
from roboalign_ray.world_model.protocol import Prompt, WorldModel, first_view

MakeModel = Callable[[RolloutConfig], WorldModel]


class RolloutMaker:
    """Makes pairs from proposals of the family "rollout".

    Args:
        maker: cuts real clips and scores generated ones.
        make_model: returns a world model for a rollout config.
        name: name of the model, part of the pairs' kind.
    """

    def __init__(self, maker: PairMaker, make_model: MakeModel, name: str) -> None:
        self._maker, self._make_model, self._name = maker, make_model, name
        self._models: dict[tuple[str, float], WorldModel] = {}

    def pairs(self, proposals: Sequence[Proposal]) -> Iterator[JudgedPair | Failed]:
        """Make `samples` pairs per proposal.

        All proposals of a call have the same policy and temperature and run as one batch.
        """
        sources: list[tuple[Proposal, SourceClip]] = []
        for proposal in proposals:
            try:
                sources.append((proposal, self._maker.source(proposal.episode, proposal.start)))
            except EpisodeError as error:
                yield Failed(error.line(), "episode")
        if not sources:
            return
        model = self._model(proposals[0])
        prompts = [source_prompt(source) for _, source in sources]
        seeds = [self._seeds(proposal) for proposal, _ in sources]
        for (proposal, source), group in zip(sources, model.rollout(prompts, seeds), strict=True):
            for sample, generated in enumerate(first_view(model.decode(group))):
                yield self._pair(proposal, source, generated, sample, group.seeds[sample])

    def _pair(
        self, proposal: Proposal, source: SourceClip, generated: np.ndarray, sample: int, seed: int
    ) -> JudgedPair | Failed:
        frames = np.concatenate([source.window.frames[:1], generated])
        scored = self._maker.generated(source, frames)
        if isinstance(scored, Failed):
            return scored
        points, measured = scored
        numbered = Proposal(**(asdict(proposal) | {"position": self._place(proposal, sample)}))
        about = {"proposal": asdict(proposal), "seed": seed, "model": self._name}
        kind = f"rollout/{self._name}/{proposal.name}-t{proposal.strength:g}"
        return self._maker.judged(numbered, source, kind, frames, points, "privileged", measured | about)

    def _place(self, proposal: Proposal, sample: int) -> int:
        return proposal.position * self._maker.config.samples + sample

    def _seeds(self, proposal: Proposal) -> tuple[int, ...]:
        generator = np.random.default_rng([self._maker.config.seed, 11, proposal.position])
        return tuple(generator.integers(2**31, size=self._maker.config.samples).tolist())

    def _model(self, proposal: Proposal) -> WorldModel:
        key = (proposal.name, proposal.strength)
        if key not in self._models:
            config = self._maker.config
            rollout = RolloutConfig(
                horizon=config.frames - 1,
                refresh=RefreshConfig(policy=proposal.name, window=config.window),
                sampling=SamplingConfig(temperature=proposal.strength),
            )
            self._models[key] = self._make_model(rollout)
        return self._models[key]


def source_prompt(source: SourceClip) -> Prompt:
    """A real clip as a prompt: its start frame, which is also the context, and its actions."""
    window = source.window
    return Prompt(
        prompt_id=f"{window.episode_id}@{window.start}",
        context=window.frames[0],
        start=window.frames[0],
        actions=window.actions[: len(window.frames) - 1],
        instruction=window.instruction,
    )
