"""RLDS datasets (TFRecord shards described by features.json), read without TensorFlow.

TensorFlow Datasets flattens an episode's steps into one Example: `steps/action` holds T x A floats in a row,
`steps/observation/image_0` T encoded pictures, `episode_metadata/...` one value each. features.json says which of
them are pictures, text or tensors, and of which shape.

RLDS records no frame rate and no robot. Both are known for the datasets in `KNOWN_DATASETS`; others must be told.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.episode import Episode, EpisodeError, Outcome
from roboalign_ray.episodes.sources.base import Quarantined
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.episodes.sources.rlds_features import read_features
from roboalign_ray.episodes.sources.tfrecord import CorruptRecord, FeatureValue, parse_example, read_records
from roboalign_ray.foundation.failures import UserError

CARTESIAN_DELTAS = (
    "delta_x [m]",
    "delta_y [m]",
    "delta_z [m]",
    "delta_roll [rad]",
    "delta_pitch [rad]",
    "delta_yaw [rad]",
    "gripper",
)


@dataclass(frozen=True)
class KnownDataset:
    """What RLDS leaves out. `action_names` empty: the feature's own name and an index are used."""

    fps: float
    embodiment: str
    action_names: tuple[str, ...] = ()


# Control rates as the datasets' authors state them.
KNOWN_DATASETS: Mapping[str, KnownDataset] = {
    "bridge": KnownDataset(5.0, "widowx", CARTESIAN_DELTAS),
    "fractal": KnownDataset(3.0, "google_robot"),
    "droid": KnownDataset(15.0, "franka"),
}


class RldsSource:
    """Episodes of an RLDS dataset folder.

    Every view that holds a picture is kept; a view that is one flat colour throughout (datasets fill absent cameras
    so) is left out and named in the provenance. Success is known only where the metadata holds it: the reward of
    demonstrations marks their end, not that the task was done.

    Args:
        root: folder with features.json and `*.tfrecord*` shards, or the folder above one version of it.
        fps: frames per second; None takes the known dataset's.
        embodiment: robot name; "" takes the known dataset's.
        views: views to decode; None takes all.

    Raises:
        UserError: no such dataset, or its frame rate is not known and not given.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: float | None = None,
        embodiment: str = "",
        views: tuple[str, ...] | None = None,
    ) -> None:
        self.root = _version_folder(Path(root))
        self.shards = sorted(path for path in self.root.iterdir() if ".tfrecord" in path.name)
        if not self.shards:
            raise UserError("holds no *.tfrecord* shard", where=str(self.root))
        self.features = read_features(self.root / "features.json")
        # Depth maps and masks are no camera views.
        self._cameras = {
            key.rsplit("/", 1)[1]: key
            for key, feature in sorted(self.features.items())
            if feature.kind == "image" and key.startswith("steps/") and feature.shape[-1:] in ((3,), ())
        }
        self.views = tuple(self._cameras) if views is None else views
        self.name = self.shards[0].name.split(".tfrecord")[0].rsplit("-", 1)[0]
        known = next((known for key, known in KNOWN_DATASETS.items() if self.name.startswith(key)), None)
        if fps is None and known is None:
            raise UserError(
                f"RLDS holds no frame rate and '{self.name}' is not a dataset whose rate is known",
                where=str(self.root),
                remedy="give it with --source-fps",
            )
        self.fps = fps if fps is not None else known.fps if known else 0.0
        self.embodiment = embodiment or (known.embodiment if known else "unknown")
        self._action_keys = self._numeric_keys("steps/action")
        if not self._action_keys:
            raise UserError("features.json names no numeric steps/action", where=str(self.root))
        self._action_names = known.action_names if known else ()

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera views that features.json names."""
        return tuple(self._cameras)

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Episodes shard by shard; a damaged record is quarantined by shard, number and byte."""
        for shard in self.shards:
            label = re.sub(r"\.tfrecord", "", shard.name.removeprefix(self.name).lstrip("-"))
            for index, record in enumerate(read_records(shard)):
                episode_id = f"{self.name}/{label}/{index:06d}"
                if isinstance(record, CorruptRecord):
                    lost = "; the rest of the shard is lost" if record.ends_file else ""
                    yield Quarantined(
                        episode_id, f"{shard.name} at byte {record.offset}: {record.reason}{lost}"
                    )
                    continue
                try:
                    yield self._episode(episode_id, shard, index, parse_example(record))
                except UserError as error:
                    yield Quarantined(episode_id, f"{shard.name} record {index}: {error.what}")

    def _episode(self, episode_id: str, shard: Path, index: int, example: dict[str, FeatureValue]) -> Episode:
        actions = self._vector(example, self._action_keys)
        views, empty = self._views(example)
        metadata = self._metadata(example)
        state_keys = self._numeric_keys("steps/observation/state") or self._numeric_keys(
            "steps/observation/proprio"
        )
        names = (
            self._action_names if len(self._action_names) == actions.shape[1] else self._plain_names(actions)
        )
        success = metadata.get("success")
        return Episode(
            episode_id=episode_id,
            # Episodes cut from one recording file share its scene.
            group_id=f"{self.name}:{metadata.get('file_path') or episode_id}",
            frames=views,
            actions=actions,
            action_names=names,
            angle_dims=tuple(d for d, name in enumerate(names) if "[rad]" in name),
            state=self._vector(example, state_keys) if state_keys else None,
            instruction=self._instruction(example),
            fps=self.fps,
            embodiment=self.embodiment,
            outcome=Outcome(success=None if success is None else bool(success)),
            provenance={
                "format": "rlds",
                "file": shard.name,
                "record": index,
                "metadata": metadata,
                "views_without_picture": empty,
            },
        )

    def _numeric_keys(self, prefix: str) -> list[str]:
        """The tensor of that name, or the tensors of a dictionary under it, in features.json's order."""
        return [
            key
            for key, feature in self.features.items()
            if feature.is_numeric and (key == prefix or key.startswith(f"{prefix}/"))
        ]

    def _vector(self, example: dict[str, FeatureValue], keys: list[str]) -> np.ndarray:
        """Tensors side by side as float32 [T, D]."""
        columns = [self._tensor(example, key) for key in keys]
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise EpisodeError(f"{', '.join(keys)} hold different numbers of steps: {sorted(lengths)}")
        return np.concatenate(columns, axis=1)

    def _tensor(self, example: dict[str, FeatureValue], key: str) -> np.ndarray:
        feature = self.features[key]
        value = example.get(key, [])
        if isinstance(value, list):
            if value and feature.encoding == "none":
                raise EpisodeError(f"'{key}' holds bytes, features.json says {feature.dtype}")
            chunks = [zlib.decompress(raw) if feature.encoding == "zlib" else raw for raw in value]
            value = np.frombuffer(b"".join(chunks), np.dtype(feature.dtype).newbyteorder("<"))
        size = int(np.prod(feature.shape))
        if not len(value) or len(value) % size:
            raise EpisodeError(f"'{key}' holds {len(value)} numbers, not a multiple of {size}")
        return value.reshape(-1, size).astype(np.float32)

    def _views(self, example: dict[str, FeatureValue]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Pictures by view, uint8 [T, H, W, 3], and the names of views without one."""
        views: dict[str, np.ndarray] = {}
        empty: list[str] = []
        for name in self.views:
            key = self._cameras[name]
            encoded = example.get(key, [])
            if not any(len(raw) for raw in encoded):
                empty.append(name)
                continue
            frames = [decode_picture(raw, f"{name}[{t}]") for t, raw in enumerate(encoded)]
            if all(np.ptp(frame) == 0 for frame in frames):
                empty.append(name)
                continue
            if len({frame.shape for frame in frames}) > 1:
                raise EpisodeError(f"view '{name}' changes its size")
            views[name] = np.stack(frames)
        if not views:
            raise EpisodeError(f"no view holds a picture (looked at {', '.join(empty) or 'none'})")
        return views, empty

    def _metadata(self, example: dict[str, FeatureValue]) -> dict[str, Any]:
        """Episode metadata as JSON types."""
        metadata: dict[str, Any] = {}
        for key, value in example.items():
            if key.startswith("episode_metadata/") and len(value) == 1:
                item = value[0]
                metadata[key.split("/", 1)[1]] = (
                    item.decode(errors="replace") if isinstance(item, bytes) else item.item()
                )
        return metadata

    def _instruction(self, example: dict[str, FeatureValue]) -> str:
        for key, feature in self.features.items():
            if feature.kind == "text" and key.endswith("language_instruction") and len(example.get(key, [])):
                text = example[key][0]
                return text.decode(errors="replace").strip() if isinstance(text, bytes) else ""
        return ""

    def _plain_names(self, actions: np.ndarray) -> tuple[str, ...]:
        names = [
            f"{key.removeprefix('steps/')}[{d}]"
            for key in self._action_keys
            for d in range(int(np.prod(self.features[key].shape)))
        ]
        return tuple(names[: actions.shape[1]])


def _version_folder(root: Path) -> Path:
    """The folder that holds features.json: `root`, or its one version folder."""
    if (root / "features.json").is_file():
        return root
    versions = sorted(path.parent for path in root.glob("*/features.json"))
    if len(versions) == 1:
        return versions[0]
    found = (
        f"{len(versions)} versions: {', '.join(v.name for v in versions)}" if versions else "no features.json"
    )
    raise UserError(
        f"holds {found}", where=str(root), remedy="name the folder with features.json and *.tfrecord*"
    )
