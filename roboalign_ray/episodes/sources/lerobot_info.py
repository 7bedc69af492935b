"""meta/info.json of a LeRobot dataset: its features, its rate and the templates of its paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, PositiveInt


class Feature(BaseModel):
    """One entry of info.json's features."""

    dtype: str
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def is_camera(self) -> bool:
        """Pictures or video, but no depth map."""
        notes = {**(self.info or {}), **(self.video_info or {})}
        depth = notes.get("is_depth_map") or notes.get("video.is_depth_map")
        return self.dtype in ("video", "image") and not depth


class Info(BaseModel):
    """What is used of meta/info.json. The paths are templates, filled for each episode."""

    codebase_version: str
    fps: float = Field(gt=0, allow_inf_nan=False)
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    chunks_size: PositiveInt = 1000
    robot_type: str | None = None


def view_name(key: str) -> str:
    """The name of a view: the part of its feature's key that tells it from the others."""
    return key.removeprefix("observation.images.").removeprefix("observation.")


def flat_names(names: Any, size: int) -> tuple[str, ...]:
    """LeRobot writes names as a list, a list in a list, or {"motors": [...]}; without fit ones, action[d]."""
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    while isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if isinstance(names, list) and len(names) == size:
        return tuple(str(name) for name in names)
    return tuple(f"action[{d}]" for d in range(size))
