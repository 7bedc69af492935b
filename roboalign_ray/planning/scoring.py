"""What a reward says of clips that a world model predicted: those of sub-environments, and those of candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.rewards.fidelity import FidelityReward
from roboalign_ray.rewards.protocol import Reward, RewardInput, Score
from roboalign_ray.rewards.student_judge import JudgedReward
from roboalign_ray.world_model.protocol import ModelCard


@dataclass(frozen=True)
class ClipSoFar:
    """What was seen since an episode began.

    Attributes:
        instruction: the sentence; "" where there is none.
        start: uint8 [V, H, W, 3], frame 0.
        frames: uint8 [t, V, H, W, 3], predicted frames; the last one alone where nothing reads the others.
        actions: float32 [t, A], those that led to these frames.
    """

    instruction: str
    start: np.ndarray
    frames: np.ndarray
    actions: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """Uint8 [V, H, W, 3], what is seen now."""
        return self.frames[-1] if len(self.frames) else self.start


class ClipScorer:
    """Asks a reward about clips.

    Args:
        reward: any that needs no real continuation, unless `goal` stands for it.
        card: of the world model.
        goal: uint8 [V, H, W, 3], what every frame is compared with, for rewards that compare with real frames.

    Attributes:
        frame_by_frame: whether each frame has a score of its own; the others judge the clip from its start.
    """

    def __init__(self, reward: Reward, card: ModelCard, goal: np.ndarray | None = None) -> None:
        self.reward, self.goal, self._card = reward, goal, card
        self.frame_by_frame = isinstance(reward, FidelityReward)
        # Ours do not look at actions, so clips with different ones may be scored as one group.
        self._in_groups = isinstance(reward, FidelityReward | JudgedReward)

    def scores(self, clips: Sequence[ClipSoFar]) -> list[Score]:
        """One `Scored` or `Failed` per clip, each of at least one predicted frame.

        Clips of one length that share a start are scored together, unless the reward may look at actions.
        """
        groups: dict[tuple, list[int]] = defaultdict(list)
        for number, clip in enumerate(clips):
            alone = 0 if self._in_groups else number
            groups[id(clip.start), clip.instruction, len(clip.frames), alone].append(number)
        found: dict[int, Score] = {}
        for members in groups.values():
            frames = np.stack([clips[number].frames for number in members])
            first = clips[members[0]]
            found.update(zip(members, self._ask(first, frames, first.actions), strict=True))
        return [found[number] for number in range(len(clips))]

    def scores_behind(self, clip: ClipSoFar, frames: np.ndarray, actions: np.ndarray) -> list[Score]:
        """One score per continuation of a clip; those that judge clips see the clip and its continuation.

        Args:
            frames: uint8 [G, n, V, H, W, 3].
            actions: float32 [G, n, A].
        """
        if not self.frame_by_frame and len(clip.frames):
            before = np.broadcast_to(clip.frames, (len(frames), *clip.frames.shape))
            frames = np.concatenate([before, frames], axis=1)
            led = np.broadcast_to(clip.actions, (len(frames), *clip.actions.shape))
            actions = np.concatenate([led, actions], axis=1)
        if self._in_groups:
            return self._ask(clip, frames, actions[0])
        return [
            self._ask(clip, frames[g : g + 1], actions[g])[0]
            for g in range(len(frames))  # a group has one series of actions
        ]

    def _ask(self, clip: ClipSoFar, frames: np.ndarray, actions: np.ndarray) -> list[Score]:
        """Scores of frames [G, n, V, H, W, 3] behind the clip's start."""
        card = self._card.actions
        inputs = RewardInput(
            instruction=clip.instruction,
            start=clip.start,
            generated=frames,
            real=None if self.goal is None else np.repeat(self.goal[None], frames.shape[1], axis=0),
            actions=None if self._in_groups else np.asarray(actions, np.float32),
            action_names=() if card is None else card.labels,
            action_kinds=() if card is None else card.kinds,
            fps=self._card.fps,
            embodiment=card.embodiments[0] if card is not None and len(card.embodiments) == 1 else "",
        )
        answers = list(self.reward.score(inputs))
        if len(answers) != len(frames):
            raise UserError(f"gave {len(answers)} scores for {len(frames)} clips", where="reward")
        return answers
