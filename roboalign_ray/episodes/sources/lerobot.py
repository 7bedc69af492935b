"""LeRobot datasets, v2.x and v3.0: Parquet tables beside mp4 videos (codecs: `video_container`).

v2.x has one Parquet file and one mp4 per view for each episode, listed in meta/episodes.jsonl. v3.0 packs many episodes
into one file: meta/episodes/chunk-*/file-*.parquet has for each episode the data file of its rows (selected by
`episode_index`) and the video file of its frames, from `from_timestamp` to `to_timestamp`.

The frame rate is that of meta/info.json, because some videos' headers are wrong. Rows and frames of an episode's own
video are matched by order, those of a shared video by time (`frame_matching`). An episode is quarantined if its frames
are not certain, or if a file of it is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from roboalign_ray.episodes.action_evidence import ActionSample
from roboalign_ray.episodes.action_kinds import ActionFindings
from roboalign_ray.episodes.episode import Episode, Outcome
from roboalign_ray.episodes.shaping import WHOLE, Shaping
from roboalign_ray.episodes.sources.base import Quarantined, Record, opened, read_or_quarantine
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.lerobot_actions import action_keys, lerobot_findings
from roboalign_ray.episodes.sources.lerobot_entries import EpisodeEntry, read_entries
from roboalign_ray.episodes.sources.lerobot_frames import table_pictures
from roboalign_ray.episodes.sources.lerobot_info import Info, is_depth
from roboalign_ray.episodes.sources.lerobot_tables import check_timestamps, episode_rows, matrix, success
from roboalign_ray.episodes.sources.lerobot_tasks import read_tasks, sentences, task_numbers
from roboalign_ray.episodes.sources.lerobot_videos import SharedVideos, video_frames
from roboalign_ray.episodes.sources.metadata import read_metadata
from roboalign_ray.foundation.failures import UserError, printable, raise_if_host

_STATE = "observation.state"
_SAMPLED = 8  # number of episodes whose actions are examined before the first one is read


class LeRobotSource:
    """Episodes of a LeRobot dataset folder.

    Args:
        root: folder that holds meta/info.json.
        views: view names (the part after "observation.images.") to decode; None takes all.
        shaping: which frames are kept during decoding.

    Raises:
        UserError: the metadata cannot be read, the version is unknown, or there is no view or no action.
    """

    def __init__(self, root: Path, *, views: tuple[str, ...] | None = None, shaping: Shaping = WHOLE) -> None:
        self.root = Path(root)
        self._shaping = shaping
        self.folder = DatasetFolder(self.root)
        self.name = printable(self.root.resolve().name)
        self.info = read_metadata(self.folder.file("meta/info.json"), Info, "LeRobot info")
        self.version = self.info.codebase_version.lstrip("v")
        if self.version.split(".")[0] not in ("2", "3"):
            raise UserError(
                f"LeRobot version '{self.info.codebase_version}' is not known",
                where=str(self.root),
                remedy="v2.x and v3.0 are read",
            )
        self.fps = self.info.fps
        self.features = self.info.features
        self.cameras = self.info.cameras()
        if views is not None:
            self.cameras = {view: key for view, key in self.cameras.items() if view in views}
        self._action_keys = action_keys(self.features)
        if not self.cameras or not self._action_keys:
            missing = "camera view" if not self.cameras else "'action' feature"
            raise UserError(f"info.json names no {missing}", where=str(self.root))
        video_keys = [key for key in self.cameras.values() if self.features[key].dtype == "video"]
        if video_keys and not self.info.video_path:
            raise UserError("info.json names videos but no 'video_path'", where=str(self.root))
        try:
            self.entries, self._bad = read_entries(
                self.folder, self.info, video_keys, v3=self.version.startswith("3")
            )
            sentences_known = all(
                entry.tasks and all(isinstance(task, str) for task in entry.tasks) for entry in self.entries
            )
            self._tasks = {} if sentences_known else read_tasks(self.folder)
        except Exception as error:  # damaged tables may raise anything
            where = self.root / "meta"
            reported = opened("a LeRobot dataset", where, error)
            if type(reported) is UserError and reported is error:
                raise
            reason = self.folder.relative(reported.line()) if reported is error else reported.what
            raise UserError(f"episode tables cannot be read ({reason})", where=str(where)) from error
        self._shared = SharedVideos.of(self.entries)

    def __len__(self) -> int:
        return len(self.entries) + len(self._bad)

    @property
    def view_names(self) -> tuple[str, ...]:
        """The views to read."""
        return tuple(self.cameras)

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the whole dataset, one line each."""
        depth = [
            key for key, feature in self.features.items() if feature.is_picture and is_depth(key, feature)
        ]
        lines = [f"{key}: a depth map, left out" for key in depth]
        if not self._tasks and not all(entry.tasks for entry in self.entries):
            lines.append("there is no task table (meta/tasks.*): instructions that are only in it stay empty")
        stated = self.info.total_episodes
        if stated is not None and stated != len(self):
            lines.append(f"info.json counts {stated} episodes, the episode table {len(self)}")
        return lines

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Episodes by index; those with a missing or corrupt file are quarantined by that file's name."""
        return (read() for _, read in self.records())

    def records(self) -> Iterator[Record]:
        """The same episodes, not yet read."""
        for bad in self._bad:
            name = printable(f"{self.name}/{bad.name}")
            yield name, partial(Quarantined, name, printable(bad.reason))
        for entry in self.entries:
            episode_id = f"{self.name}/{entry.index:06d}"
            read = partial(self._episode, episode_id, entry)
            yield episode_id, partial(read_or_quarantine, episode_id, read, reword=self.folder.relative)

    def _episode(self, episode_id: str, entry: EpisodeEntry) -> Episode:
        for (
            clip
        ) in entry.clips.values():  # missing videos are common, so this is checked before anything is read
            self.folder.file(clip.file, "video file")
        pictures = [key for key in self.cameras.values() if key not in entry.clips]
        rows = episode_rows(self.folder, entry, [*self._action_keys, _STATE, *pictures])
        check_timestamps(rows, self.fps, entry.data_file)
        sample = self._sample(rows, entry)
        tasks = (
            sentences(entry.tasks or task_numbers(rows), self._tasks) if self._tasks or entry.tasks else []
        )
        notes: dict[str, str] = {}
        shaping = self._shaping.of_rate(self.fps, episode_id)
        frames = {view: self._frames(entry, key, rows, shaping, notes) for view, key in self.cameras.items()}
        return Episode(
            episode_id=episode_id,
            group_id=episode_id,
            frames=frames,
            actions=sample.actions,
            action_names=self.action_findings.names,
            action_kinds=self.action_findings.kinds,
            state=sample.state,
            instruction=tasks[0] if tasks else "",
            fps=self.fps,
            embodiment=self.info.robot_type or "unknown",
            outcome=Outcome(success=success(rows)),
            provenance={
                "format": f"lerobot v{self.version}",
                "file": entry.data_file,
                "episode_index": entry.index,
                "videos": {key: clip.file for key, clip in entry.clips.items()},
                **({"tasks": tasks} if len(tasks) > 1 else {}),
                **({"frames": notes} if notes else {}),
            },
        )

    @cached_property
    def action_findings(self) -> ActionFindings:
        """Findings about the actions, from their names and from the tables of a few episodes."""
        sizes: dict[str, int] = {}
        samples: list[ActionSample] = []
        for entry in self.entries:
            try:
                rows = episode_rows(self.folder, entry, [*self._action_keys, _STATE])
                samples.append(self._sample(rows, entry))
                sizes = {key: matrix(rows, key, entry.data_file).shape[1] for key in self._action_keys}
            except Exception as error:  # reported when the episode itself is read
                raise_if_host(error, where=str(self.root))
            if len(samples) == _SAMPLED:
                break
        return lerobot_findings(self.features, sizes, samples, _STATE)

    def _sample(self, rows: pa.Table, entry: EpisodeEntry) -> ActionSample:
        """Actions and state of an episode."""
        parts = [matrix(rows, key, entry.data_file) for key in self._action_keys]
        state = matrix(rows, _STATE, entry.data_file) if _STATE in rows.column_names else None
        return ActionSample(np.concatenate(parts, axis=1), state)

    def _frames(
        self, entry: EpisodeEntry, key: str, rows: pa.Table, shaping: Shaping, notes: dict[str, str]
    ) -> np.ndarray:
        """Frames of one view, uint8 [T, H, W, 3], from pictures inside the table or from a part of a video."""
        if key not in entry.clips:
            return table_pictures(self.folder, rows, key, entry.data_file, shaping).frames()
        clip = entry.clips[key]
        path = self.folder.file(clip.file, "video file")
        kept, note = video_frames(path, clip, self._shared, rows, self.fps, shaping)
        if note:
            notes[key] = note
        return kept.frames()
