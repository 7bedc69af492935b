"""A weighted sum of rewards, for example the judge and fidelity to the real continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.rewards.protocol import Reward, RewardInput, Score, Scored


class WeightedReward:
    """Implements `Reward`. Components: each part's total under its name, its components under "part/component".

    A sample fails if one part fails, because a partial sum would be another reward. `version` is the largest of the
    parts' versions: that of the learned part, because fixed rewards have 0.

    Args:
        parts: name to (reward, weight); parts of weight 0 only give their components.

    Raises:
        UserError: no part.
    """

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]) -> None:
        if not parts:
            raise UserError("a weighted reward of no parts", where="reward", remedy="name at least one")
        self.parts = dict(parts)

    def score(self, inputs: RewardInput) -> Sequence[Score]:
        """One `Scored` or `Failed` per sample, in order."""
        answers = {name: reward.score(inputs) for name, (reward, _) in self.parts.items()}
        return [
            self._summed({name: scores[sample] for name, scores in answers.items()})
            for sample in range(len(inputs.generated))
        ]

    def _summed(self, scores: Mapping[str, Score]) -> Score:
        total, version = 0.0, 0
        components: dict[str, float] = {}
        frames: list[np.ndarray | None] = []
        for name, score in scores.items():
            if isinstance(score, Failed):
                named = score.reason.startswith(f"{name}: ")  # a reward of an extension gives its own name
                return score if named else Failed(f"{name}: {score.reason}", score.kind)
            weight = self.parts[name][1]
            total += weight * score.total
            version = max(version, score.version)
            components[name] = score.total
            components |= {f"{name}/{part}": value for part, value in score.components.items()}
            frames.append(None if score.per_frame is None else weight * score.per_frame)
        known = [values for values in frames if values is not None]
        # The score is per frame only if every part's score is.
        per_frame = np.sum(known, axis=0) if len(known) == len(frames) else None
        return Scored(total, components, version, per_frame)
