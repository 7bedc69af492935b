"""Names of windows: what travels between processes in place of frames."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptName:
    """A window of an episode.

    Attributes:
        start: its first frame's number, before the stride.
        horizon: frames to predict from there; 0 takes the job's longest.
    """

    episode_id: str
    start: int
    horizon: int = 0

    @property
    def prompt_id(self) -> str:
        """The name as one string: "episode@start", or "episode@start+horizon"."""
        return f"{self.episode_id}@{self.start}" + (f"+{self.horizon}" if self.horizon else "")

    @classmethod
    def parse(cls, prompt_id: str) -> PromptName:
        """The window that `prompt_id` names."""
        episode_id, _, window = prompt_id.rpartition("@")
        start, _, horizon = window.partition("+")
        return cls(episode_id, int(start), int(horizon or 0))
