"""Align with a reward of your own: a function or a class, named in the profile as module:attribute.

python examples/own_reward.py
"""

import sys

import numpy as np
from pydantic import BaseModel

from roboalign_ray import RewardInput, Scored, align


class Steadiness:
    """Rewards rollouts whose background stays as it is.

    Its settings are checked before the job starts, and it is built once in every scorer.
    """

    class Config(BaseModel):
        tolerance: float = 8.0  # grey levels

    def __init__(self, config: Config) -> None:
        self.tolerance = config.tolerance

    def score(self, inputs: RewardInput) -> list[Scored]:
        """One score per sample; frames are uint8 [samples, frames, views, height, width, 3]."""
        changed = np.abs(inputs.generated.astype(float) - inputs.start).mean(axis=-1)
        still = (changed < self.tolerance).mean(axis=(1, 2, 3, 4))
        return [Scored(float(share), {"still": float(share)}) for share in still]


if __name__ == "__main__":
    parts = ("reward.own_reward:Steadiness={weight: 1, tolerance: 12}", "reward.fidelity.weight=1")
    result = align("demo", *parts, "reward.judged.weight=0", *sys.argv[1:], out="runs/own_reward")
    print(f"aligned model: {result.model}")
