"""Prompts for alignment: which windows, in which order, and the seeds of their samples.

The schedule uses only episode ids and lengths, and is a function of (seed, update), so a resumed job has the same
prompts. Names of windows are sent to workers; the actor that needs pixels reads them (`world_model/prompts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from roboalign_ray.config import EpisodesConfig, RolloutConfig
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.window_names import PromptName
from roboalign_ray.episodes.windows import WindowSpec, completing_starts, long_enough, spread

_LAPS_KEPT = 2  # orders in memory: the groups in flight span at most two passes
# Random streams that must not share seeds.
_ORDER, _START, _SAMPLE, _HELD_OUT, _HORIZON, _DONE = 1, 2, 3, 4, 5, 6


class HorizonDraw:
    """Draws the horizon of a training group's rollouts.

    Args:
        rollout: the longest horizon, and the distribution of shorter ones or of branches.

    Attributes:
        lengths: possible horizons in frames, int64 [n]; empty if all are the longest.
        shares: probability of each, float64 [n].
    """

    def __init__(self, rollout: RolloutConfig) -> None:
        settings, self._branching = rollout.horizons, rollout.branching
        fixed = settings.shape == "fixed"
        self.lengths = np.arange(0 if fixed else settings.least, 0 if fixed else rollout.horizon + 1)
        weights = self.lengths.astype(float) ** -(settings.tail if settings.shape == "long_tailed" else 0.0)
        self.shares = weights / weights.sum() if len(weights) else weights

    def draw(self, stream: list[int]) -> int:
        """Horizon in frames, a function of the stream's name; 0 for the longest if there is nothing to draw."""
        if not len(self.lengths):
            return 0
        return int(np.random.default_rng(stream).choice(self.lengths, p=self.shares))

    def of_group(self, number: int, stream: list[int]) -> tuple[int, int]:
        """`horizon` and `shared` of the prompt of training group `number`, see `PromptName`."""
        if not self._branching.most:
            return self.draw(stream), 0
        longest, frames = self._branching.longest(number), self._branching.clip_frames
        clips = int(np.random.default_rng(stream).integers(1, longest + 1))
        return clips * frames, (clips - 1) * frames


class PromptSchedule:
    """The windows of an update, the horizons of their rollouts, and the seeds of their samples.

    Args:
        train, held_out: (episode id, possible window starts) of each split, neither empty; held-out windows are used in
            this order.
        seed: seed of the job.
        rollout: sets the horizons of training windows (held-out windows always have the longest horizon), and the share
            of windows in which the task is completed.
        completing: per episode whose task is completed, the starts of windows in which this happens.
    """

    def __init__(
        self,
        train: Sequence[tuple[str, int]],
        held_out: Sequence[tuple[str, int]],
        seed: int,
        rollout: RolloutConfig | None = None,
        completing: Mapping[str, range] | None = None,
    ) -> None:
        self._train, self._held_out, self._seed = list(train), list(held_out), seed
        rollout = rollout or RolloutConfig()
        self._horizon = HorizonDraw(rollout)
        self._share, self._completing = rollout.completing, completing or {}
        self._order = lru_cache(_LAPS_KEPT)(self._draw_order)

    def train(self, update: int, count: int) -> list[PromptName]:
        """`count` windows of an update. Every episode is used once before any episode is used again."""
        return [self._train_window(update * count + index) for index in range(count)]

    def held_out(self, count: int) -> list[PromptName]:
        """`count` held-out windows, the same at every call and for every job seed."""
        names = []
        for position in range(count):
            episode_id, starts = self._held_out[position % len(self._held_out)]
            names.append(PromptName(episode_id, self._start(episode_id, starts, [_HELD_OUT, position])))
        return names

    def seeds(self, update: int, prompts: int, samples: int) -> list[tuple[int, ...]]:
        """Sampling seeds per prompt of an update; update -1 stands for the held-out prompts."""
        generator = np.random.default_rng([self._seed, _SAMPLE, update + 1])
        return [tuple(row) for row in generator.integers(2**31, size=(prompts, samples)).tolist()]

    def _train_window(self, position: int) -> PromptName:
        lap, place = divmod(position, len(self._train))
        episode_id, starts = self._train[self._order(lap)[place]]
        start = self._start(episode_id, starts, [self._seed, _START, position])
        return PromptName(
            episode_id, start, *self._horizon.of_group(position, [self._seed, _HORIZON, position])
        )

    def _start(self, episode_id: str, starts: int, stream: list[int]) -> int:
        generator = np.random.default_rng(stream)
        shown = self._completing.get(episode_id, range(0))
        if shown and np.random.default_rng([*stream, _DONE]).random() < self._share:
            return int(generator.integers(shown.start, shown.stop))
        return int(generator.integers(starts))

    def _draw_order(self, lap: int) -> np.ndarray:
        """Positions in `train`, int64, in the order of a pass over all episodes."""
        return np.random.default_rng([self._seed, _ORDER, lap]).permutation(len(self._train))


def schedule_from_store(config: EpisodesConfig, rollout: RolloutConfig, seed: int) -> PromptSchedule:
    """The schedule of a store's splits: windows that hold the longest rollout. Reads the store's index, not its video.

    Raises:
        UserError: there is no store, or no episode is long enough.
    """
    store = open_store(config.store)
    spec = WindowSpec(rollout.horizon + 1, stride=config.frame_stride)

    def starts(numbers: list[int]) -> list[tuple[str, int]]:
        return [(store.ids[n], store.lengths[n] - spec.span + 1) for n in numbers]

    fraction = config.held_out_fraction
    train = long_enough(store, spec, "train", fraction)
    held_out = spread(store, long_enough(store, spec, "held_out", fraction))
    done: Sequence[int | None] = store.successes() if rollout.completing else ()
    shown = {
        store.ids[n]: completing_starts(store.lengths[n], moment, spec.span) for n, moment in enumerate(done)
    }
    return PromptSchedule(starts(train), starts(held_out), seed, rollout, shown)
