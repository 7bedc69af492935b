"""DROID episodes in the annotation layout: one JSON and three mp4 per episode.

    <root>/annotation/<split>/<episode>.json
    <root>/videos/<split>/<episode>/{0,1,2}.mp4      two exterior cameras and the wrist camera, in this order

An episode may have fewer videos; their names 0, 1 and 2 then identify the cameras.

The JSON holds the instruction, the success flag and, at video rate, states of seven numbers: x, y, z in metres,
roll, pitch, yaw in radians, and the gripper (0 open, 1 closed). Some files also hold 15 Hz recordings, of which the
states are every third sample.

Actions are computed from the states, for every episode alike: action[t] is the pose change from state t to state t+1
(each angle the shorter way round, because roll wraps at +-pi) and the gripper of state t+1; the last one is a hold.
The commands recorded at 15 Hz would not be better: only some episodes have them, they are absolute targets that the arm
follows with a delay, and the achieved 15 Hz steps add up to exactly these differences.

A video may be one frame longer than its states. The surplus is the last frame: frame-to-frame motion follows the joint
speed best with the first frames aligned, and the last frame repeats the previous one. It is removed, which the
provenance records. Any other mismatch quarantines the episode.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from roboalign_ray.episodes.action_kinds import ActionFindings
from roboalign_ray.episodes.actions import differences
from roboalign_ray.episodes.episode import Episode, EpisodeError, Outcome
from roboalign_ray.episodes.shaping import MOST_EPISODE_PIXELS, WHOLE, Shaping
from roboalign_ray.episodes.sources.base import Quarantined, Record, read_or_quarantine
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.known_actions import CARTESIAN_DELTA_KINDS, CARTESIAN_DELTAS
from roboalign_ray.episodes.sources.metadata import read_metadata
from roboalign_ray.episodes.video import video_rate
from roboalign_ray.episodes.video_frames import read_frames
from roboalign_ray.foundation.failures import UserError, printable

VIEWS = ("exterior_1", "exterior_2", "wrist")
ANGLE_DIMS = (3, 4, 5)
_STATE_SIZE = 7
MOST_STATES = 1_000_000


class Video(BaseModel):
    """Path of one view's video, relative to the folder with annotation/ and videos/."""

    video_path: str


class Annotation(BaseModel):
    """The used parts of an episode's JSON. `read_states` checks the numbers of the states."""

    texts: list[str] | None = None
    success: bool | None = None
    videos: list[Video] = Field(min_length=1, max_length=len(VIEWS))
    states: list[Any] = Field(max_length=MOST_STATES)
    recorded_15hz: Any = Field(None, alias="action.cartesian_position")


class DroidSource:
    """Episodes under one folder, or under several folders of this layout side by side.

    Args:
        root: folder with annotation/ and videos/, or the folder above such folders.
        views: views to decode, from `VIEWS`; None takes all.
        shaping: which frames are kept during decoding.

    Every episode is a group of its own: the annotations do not say which episodes share a scene.

    Raises:
        UserError: there is no such folder.
    """

    name = "droid"
    action_findings = ActionFindings(
        CARTESIAN_DELTAS, CARTESIAN_DELTA_KINDS, ("computed from the states",) * len(CARTESIAN_DELTAS)
    )

    def __init__(self, root: Path, *, views: tuple[str, ...] | None = None, shaping: Shaping = WHOLE) -> None:
        self.root = Path(root)
        self._shaping = shaping
        self.views = VIEWS if views is None else views
        self.annotations = sorted(annotation_files(self.root))
        if not self.annotations:
            raise UserError("holds no annotation/<split>/<episode>.json", where=str(root))

    def __len__(self) -> int:
        return len(self.annotations)

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Episodes by path. Episodes with unreadable JSON, missing or corrupt video, or bad states are quarantined."""
        return (read() for _, read in self.records())

    def records(self) -> Iterator[Record]:
        """The same episodes, not yet read."""
        for path in self.annotations:
            base = path.parents[2]
            parts = [] if base == self.root else [base.name]
            episode_id = printable("/".join([self.name, *parts, path.parent.name, path.stem]))
            read = partial(self._episode, episode_id, base, path)
            yield episode_id, partial(read_or_quarantine, episode_id, read, reword=self._relative)

    def _relative(self, text: str) -> str:
        return text.replace(f"{self.root}/", "")

    def _episode(self, episode_id: str, base: Path, path: Path) -> Episode:
        folder = DatasetFolder(base)
        annotation = read_metadata(
            folder.file(path.relative_to(base), "annotation"), Annotation, "a DROID annotation"
        )
        states = read_states(annotation.states, path)
        places = camera_videos([entry.video_path for entry in annotation.videos], path)
        videos = {view: folder.file(place, "video file") for view, place in places.items()}
        frames: dict[str, np.ndarray] = {}
        notes = [f"{view}: the annotation lists no video" for view in VIEWS if view not in places]
        fps = video_rate(next(iter(videos.values())))
        shaping = self._shaping.of_rate(fps, episode_id)
        for view, video in videos.items():
            if view not in self.views:
                continue
            kept = read_frames(
                video, shaping=shaping, most_frames=len(states) + 1, most_pixels=MOST_EPISODE_PIXELS
            )
            surplus = kept.count - len(states)
            if surplus not in (0, 1):
                raise EpisodeError(f"{kept.count} frames for {len(states)} states", where=str(video))
            if surplus:
                notes.append(f"{view}: last of {kept.count} frames cut off, there are {len(states)} states")
            frames[view] = kept.frames(len(states))
        if not frames:
            raise EpisodeError(f"lists no video of {', '.join(self.views)}", where=str(path))
        return Episode(
            episode_id=episode_id,
            group_id=episode_id,
            frames=frames,
            actions=actions_from_states(states),
            action_names=CARTESIAN_DELTAS,
            action_kinds=CARTESIAN_DELTA_KINDS,
            state=states.astype(np.float32),
            instruction=(annotation.texts or [""])[0].strip(),
            fps=fps,
            embodiment="franka",
            outcome=Outcome(success=annotation.success),
            provenance={
                "format": "droid",
                "file": str(path.relative_to(self.root)),
                "videos": [str(video.relative_to(self.root)) for video in videos.values()],
                "actions": "differences of consecutive states, gripper of the next state",
                "has_15hz_recording": annotation.recorded_15hz is not None,
                "notes": notes,
            },
        )


def annotation_files(root: Path) -> list[Path]:
    """Annotation files of the layout in `root`, or one level below it."""
    return [*root.glob("annotation/*/*.json"), *root.glob("*/annotation/*/*.json")]


def camera_videos(paths: list[str], where: Path) -> dict[str, str]:
    """View -> video. Three videos are the cameras in the order of `VIEWS`; fewer are identified by their names.

    Args:
        paths: paths of an episode's videos in the annotation.
        where: the annotation, for errors.

    Raises:
        EpisodeError: a video is listed twice, or fewer than three are not named 0, 1 or 2.
    """
    if len(set(paths)) < len(paths):
        raise EpisodeError("lists the same video twice", where=str(where))
    if len(paths) == len(VIEWS):
        return dict(zip(VIEWS, paths, strict=True))
    named = {Path(path).stem: path for path in paths}
    numbers = {str(number): view for number, view in enumerate(VIEWS)}
    if len(named) < len(paths) or not set(named) <= set(numbers):
        raise EpisodeError(
            f"lists {len(paths)} videos, and their names do not tell which cameras they are",
            where=str(where),
            remedy="name them 0.mp4 and 1.mp4 (exterior) and 2.mp4 (wrist)",
        )
    return {numbers[name]: named[name] for name in sorted(named)}


def read_states(rows: Any, path: Path) -> np.ndarray:
    """States float64 [T, 7].

    Raises:
        EpisodeError: the shape is wrong, or a number is not finite.
    """
    try:
        states = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise EpisodeError(f"states are no table of numbers ({error})", where=str(path)) from error
    if states.ndim != 2 or states.shape[1] != _STATE_SIZE or not len(states):
        raise EpisodeError(f"states have shape {states.shape}, not [T, {_STATE_SIZE}]", where=str(path))
    if not np.isfinite(states).all():
        step, dim = np.argwhere(~np.isfinite(states))[0]
        raise EpisodeError(f"state {step} holds {states[step, dim]} in dimension {dim}", where=str(path))
    return states


def actions_from_states(states: np.ndarray) -> np.ndarray:
    """Pose changes, and the next gripper.

    Args:
        states: float [T, 7]: x, y, z, roll, pitch, yaw, gripper.

    Returns:
        float32 [T, 7]; each angle takes the shorter way round; the last row is a hold that keeps the gripper.
    """
    actions = differences(states, ANGLE_DIMS)
    actions[:-1, 6] = states[1:, 6]
    actions[-1, 6] = states[-1, 6]
    return actions
