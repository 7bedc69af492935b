"""The episodes of a job, its windows, and the simulation of episodes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig, Seed
from roboalign_ray.config.paths import StoreOrFolder


class EpisodesConfig(FrozenConfig):
    """Reading episodes from a store.

    Attributes:
        store: path of an episode store; "shipped" for the one inside the package, "shipped_two_views" for the one of
            two camera views at 5 Hz.
        view: camera view; None takes each episode's first one.
        views: camera views of a world model of several views, in its order; () for a world model of one view.
        frame_stride: keep every n-th frame; the actions in between are accumulated, not dropped. Above 1, the store
            must declare the kind of each action dimension (`roboalign episodes declare`).
        held_out_fraction: share of episode groups held out, selected by a hash of the group id.
        action_bins: number of bins per action dimension between its 1st and 99th percentile.
        shuffle_buffer: number of windows in the shuffle buffer while streaming.
    """

    store: StoreOrFolder = "shipped"
    view: str | None = None
    views: tuple[str, ...] = ()
    frame_stride: PositiveInt = 1
    held_out_fraction: float = Field(0.1, gt=0.0, lt=1.0)
    action_bins: int = Field(256, ge=2, le=65536)
    shuffle_buffer: PositiveInt = 512

    @property
    def first_view(self) -> str | None:
        """The view of models that see one, or the first one of those that see several; None: each episode's first."""
        return self.views[0] if self.views else self.view

    @model_validator(mode="after")
    def _check_views(self) -> EpisodesConfig:
        if len(set(self.views)) != len(self.views):
            raise ConfigError("a view stands there twice", where="episodes.views")
        if self.views and self.view is not None:
            raise ConfigError(
                "view and views are both set", where="episodes.views", remedy="set one of them to its default"
            )
        return self


class SimulationConfig(FrozenConfig):
    """Generating Meta-World episodes.

    Attributes:
        tasks: Meta-World task names; empty takes the built-in list.
        starts_per_task: number of distinct start states per task.
        variants: action variants replayed from each start: "expert" and counterfactual ones.
        frames: number of frames per episode.
        steps_per_frame: simulator steps between two frames (80 Hz physics; 5 steps give 16 Hz control).
        views: cameras, in the order of an episode's views: "front" is the free camera below; "wrist" is mounted on the
            hand and shows the fingers and the space between them.
        height, width: frame size of every view, pixels.
        supersample: rendered pixels per pixel and side; smooths edges at little cost under software OpenGL.
        camera_distance, camera_azimuth, camera_elevation: position of the free camera, metres and degrees.
        camera_lookat: point that the free camera looks at, metres, world frame.
        seed: start states are functions of task, seed and index, so a larger run contains a smaller one.
        workers: number of simulator processes; 0 takes one per core.
    """

    tasks: tuple[str, ...] = ()
    starts_per_task: PositiveInt = 20
    variants: tuple[str, ...] = ("expert", "noisy")
    frames: PositiveInt = 40
    steps_per_frame: PositiveInt = 4
    views: tuple[Literal["front", "wrist"], ...] = Field(("front",), min_length=1)
    height: PositiveInt = 64
    width: PositiveInt = 64
    supersample: PositiveInt = 4
    camera_distance: float = Field(1.05, gt=0)
    camera_azimuth: float = 135.0
    camera_elevation: float = -30.0
    camera_lookat: tuple[float, float, float] = (0.0, 0.68, 0.08)
    seed: Seed = 0
    workers: int = Field(0, ge=0)

    @field_validator("views")
    @classmethod
    def _check_views(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(views)) != len(views):
            raise ValueError("a view stands there twice")
        return views
