"""meta/info.json of a LeRobot dataset: its features, its rate and the templates of its paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field, PositiveInt

from roboalign_ray.foundation.failures import printable

_DEEP_FORMATS = ("gray9", "gray10", "gray12", "gray14", "gray16", "gbrp16", "grayf32")


class Feature(BaseModel):
    """One entry of info.json's features."""

    dtype: str
    shape: Any = None
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def is_picture(self) -> bool:
        """Pictures or video, colour or depth."""
        return self.dtype in ("video", "image")

    @property
    def is_depth(self) -> bool:
        """A depth map, or grey values of more than 8 bits: not a camera picture."""
        notes = {**(self.info or {}), **(self.video_info or {})}
        if notes.get("is_depth_map") or notes.get("video.is_depth_map"):
            return True
        return str(notes.get("video.pix_fmt") or notes.get("pix_fmt") or "").startswith(_DEEP_FORMATS)

    @property
    def channels(self) -> int | None:
        """Number of channels, if the shape gives it: [H, W, C] or [C, H, W]."""
        sizes = self.shape if isinstance(self.shape, list) and len(self.shape) == 3 else []
        return next((size for size in (sizes[-1:] + sizes[:1]) if size in (1, 3, 4)), None)


class Info(BaseModel):
    """The used parts of meta/info.json. The paths are templates, filled for each episode."""

    codebase_version: str
    fps: float = Field(gt=0, le=10_000, allow_inf_nan=False)
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    chunks_size: PositiveInt = 1000
    robot_type: str | None = None
    total_episodes: int | None = None

    def cameras(self) -> dict[str, str]:
        """View name -> feature, of every camera picture; depth maps are left out."""
        keys = [key for key, feature in self.features.items() if feature.is_picture]
        return view_names(key for key in keys if not is_depth(key, self.features[key]))


def is_depth(key: str, feature: Feature) -> bool:
    """Whether a feature of pictures is a depth map: marked as one, or one channel and a name for depth."""
    return feature.is_depth or (feature.channels == 1 and "depth" in key.lower())


def view_names(keys: Iterable[str]) -> dict[str, str]:
    """View name -> feature.

    A view is named by the part after "observation.images." or "observation."; features that would share a name keep
    their full name, so that none hides another.
    """
    keys = list(keys)
    short = {key: key.removeprefix("observation.images.").removeprefix("observation.") for key in keys}
    uses = Counter(short.values())
    names = {short[key] if uses[short[key]] == 1 and short[key] else key: key for key in keys}
    names = names if len(names) == len(keys) else {key: key for key in keys}
    return {printable(name): key for name, key in names.items()}
