"""Names of windows, which are sent between processes instead of frames."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptName:
    """A window of an episode.

    Attributes:
        start: number of its first frame, before the stride.
        horizon: number of frames to predict; 0 takes the job's longest.
        shared: number of first frames that are predicted once, as a history that all samples of the group share.
    """

    episode_id: str
    start: int
    horizon: int = 0
    shared: int = 0

    @property
    def prompt_id(self) -> str:
        """The name as one string: "episode@start", "episode@start+horizon", or "episode@start+horizon~shared"."""
        horizon = f"+{self.horizon}" if self.horizon else ""
        return f"{self.episode_id}@{self.start}{horizon}" + (f"~{self.shared}" if self.shared else "")

    @classmethod
    def parse(cls, prompt_id: str) -> PromptName:
        """The window that `prompt_id` names."""
        episode_id, _, window = prompt_id.rpartition("@")
        window, _, shared = window.partition("~")
        start, _, horizon = window.partition("+")
        return cls(episode_id, int(start), int(horizon or 0), int(shared or 0))


def episode_of(prompt_id: str) -> str:
    """The episode of the window that `prompt_id` names; the whole id where it names no window."""
    return prompt_id.rpartition("@")[0] or prompt_id
