"""RLDS datasets (TFRecord shards described by features.json), read without TensorFlow.

TensorFlow Datasets flattens an episode's steps into one Example: `steps/action` holds T x A floats in a row,
`steps/observation/image_0` T encoded pictures, `episode_metadata/...` one value each. features.json has their types
(pictures, text or tensors) and shapes.

An action that is a dictionary becomes one vector: its numeric leaves, booleans as 0 and 1, in features.json's order,
with the leaves' own names (`known_actions` has better names for the numbers of some data sets).

RLDS has no frame rate and no robot. Both are known for the datasets in `KNOWN_DATASETS`; others need an option.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.episodes.action_evidence import ActionSample
from roboalign_ray.episodes.action_kinds import ActionFindings, listed
from roboalign_ray.episodes.episode import Episode, EpisodeError, Outcome
from roboalign_ray.episodes.shaping import WHOLE, FrameCollector, Shaping
from roboalign_ray.episodes.sources.base import Quarantined, Record, read_or_quarantine
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.known_actions import ActionLeaf, rlds_findings
from roboalign_ray.episodes.sources.pictures import decode_picture
from roboalign_ray.episodes.sources.rlds_features import read_features, view_keys
from roboalign_ray.episodes.sources.rlds_notes import dataset_notes
from roboalign_ray.episodes.sources.rlds_shards import Shard, find_shards
from roboalign_ray.episodes.sources.rlds_tensors import tensor_rows
from roboalign_ray.episodes.sources.rlds_texts import is_number, read_labels, text_keys, text_of, truth
from roboalign_ray.episodes.sources.tfrecord import CorruptRecord, FeatureValue, parse_example, read_records
from roboalign_ray.foundation.failures import UserError, printable, raise_if_host


@dataclass(frozen=True)
class KnownDataset:
    """Fields that RLDS lacks; `known_actions` has those of the actions."""

    fps: float
    embodiment: str


# Control rates as stated by the datasets' authors.
KNOWN_DATASETS: Mapping[str, KnownDataset] = {
    "bridge": KnownDataset(5.0, "widowx"),
    "fractal": KnownDataset(3.0, "google_robot"),
    "droid": KnownDataset(15.0, "franka"),
}
_ACTIONS = ("steps/action", "steps/actions")
_SAMPLED = 10  # number of records whose actions are examined before the first one is read


class RldsSource:
    """Episodes of an RLDS dataset folder.

    Every view that holds a picture is kept; a view that is one flat colour throughout (how datasets fill absent
    cameras) is left out and named in the provenance. Success is known only if the metadata holds it: the reward of
    demonstrations marks their end, and not that the task was completed.

    Args:
        root: folder with features.json and `*.tfrecord*` shards, or the folder above one version of it.
        fps: frames per second; None takes the rate of a known dataset.
        embodiment: robot name; "" takes that of a known dataset.
        views: views to decode; None takes all.
        shaping: which frames are kept during decoding.

    Raises:
        UserError: there is no such dataset, or its frame rate is neither known nor given.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: float | None = None,
        embodiment: str = "",
        views: tuple[str, ...] | None = None,
        shaping: Shaping = WHOLE,
    ) -> None:
        self._shaping = shaping
        self.root = _version_folder(Path(root))
        self.folder = DatasetFolder(self.root)
        self._shards = find_shards(self.folder)
        self.features = read_features(self.folder.file("features.json"))
        self._cameras = view_keys(self.features)
        self.views = tuple(self._cameras) if views is None else views
        self.name = printable(self._shards.name)
        self._texts = text_keys(self.features)
        self._labels = read_labels(self.folder, self.features, self._texts)
        key = next((key for key in KNOWN_DATASETS if self.name.startswith(key)), "")
        known = KNOWN_DATASETS.get(key)
        self._assumed = []
        if known is not None and fps is None:
            published = f"{known.fps:g} Hz and the robot {known.embodiment}, as published for {key}"
            self._assumed.append(f"{published}; another rate is given with --source-fps")
        if fps is None and known is None:
            raise UserError(
                f"RLDS holds no frame rate and '{self.name}' is not a dataset whose rate is known",
                where=str(self.root),
                remedy="give it with --source-fps",
            )
        self.fps = fps if fps is not None else known.fps if known else 0.0
        self.embodiment = embodiment or (known.embodiment if known else "unknown")
        self._action = next((key for key in _ACTIONS if self._numeric_keys(key)), "")
        self._action_keys = self._numeric_keys(self._action) if self._action else []
        if not self._action_keys:
            steps = listed([key for key, feature in self.features.items() if key.startswith("steps/")])
            raise UserError(
                f"features.json names no numbers as {' or '.join(_ACTIONS)}",
                where=str(self.root),
                remedy=f"its steps hold {steps}",
            )

    @property
    def view_names(self) -> tuple[str, ...]:
        """Camera views that features.json names."""
        return tuple(self._cameras)

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the whole dataset, one line each."""
        return self._assumed + dataset_notes(
            self.features, self._shards, self._action, self._texts, self._labels
        )

    def episodes(self) -> Iterator[Episode | Quarantined]:
        """Episodes shard by shard. Damaged records are quarantined by shard and byte, missing shards by name."""
        return (read() for _, read in self.records())

    def records(self) -> Iterator[Record]:
        """The same episodes, their bytes read and not yet decoded."""
        for label in self._shards.missing:
            name = printable(f"{self.name}/{label}")
            yield name, partial(Quarantined, name, "the shard is missing, its episodes with it")
        for shard in self._shards.present:
            count = 0
            for record in read_records(shard.path):
                name = printable(f"{self.name}/{shard.label}/{count:06d}")
                yield name, partial(self._item, name, shard, count, record)
                count += 1
            if shard.records is not None and count < shard.records:
                reason = f"{shard.path.name} holds {count} records, dataset_info.json says {shard.records}"
                name = printable(f"{self.name}/{shard.label}/{count:06d}")
                yield name, partial(Quarantined, name, printable(reason))

    def _item(
        self, episode_id: str, shard: Shard, index: int, record: bytes | CorruptRecord
    ) -> Episode | Quarantined:
        if isinstance(record, CorruptRecord):
            lost = "; the rest of the shard is lost" if record.ends_file else ""
            reason = f"{shard.path.name} at byte {record.offset}: {record.reason}{lost}"
            return Quarantined(episode_id, printable(reason))
        return read_or_quarantine(
            episode_id,
            lambda: self._episode(episode_id, shard.path, index, parse_example(record)),
            reword=lambda reason: f"{shard.path.name} record {index}: {reason}",
        )

    def _episode(self, episode_id: str, shard: Path, index: int, example: dict[str, FeatureValue]) -> Episode:
        sample = self._sample(example)
        shaping = self._shaping.of_rate(self.fps, episode_id)
        views, empty = self._views(example, len(sample.actions), shaping)
        metadata = self._metadata(example)
        success = metadata.get("success")
        return Episode(
            episode_id=episode_id,
            # Episodes cut from one recording file share its scene.
            group_id=f"{self.name}:{metadata.get('file_path') or episode_id}",
            frames=views,
            actions=sample.actions,
            action_names=self.action_findings.names,
            action_kinds=self.action_findings.kinds,
            state=sample.state,
            instruction=self._instruction(example),
            fps=self.fps,
            embodiment=self.embodiment,
            outcome=Outcome(success=truth(success)),
            provenance={
                "format": "rlds",
                "file": shard.name,
                "record": index,
                "metadata": metadata,
                "views_without_picture": empty,
            },
        )

    @cached_property
    def action_findings(self) -> ActionFindings:
        """Findings about the actions, from features.json and from the first records."""
        samples = [self._sample(example) for example in islice(self._readable(), _SAMPLED)]
        if not samples:  # no record is usable, and features.json alone is not trusted
            return ActionFindings((), (), ())
        leaves = [
            ActionLeaf(key.removeprefix(self._action).lstrip("/"), max(0, prod(self.features[key].shape)))
            for key in self._action_keys
        ]
        return rlds_findings(self.name, leaves, samples)

    def _readable(self) -> Iterator[dict[str, FeatureValue]]:
        """Records whose actions and state can be read; errors of others are reported later."""
        for shard in self._shards.present:
            for record in read_records(shard.path):
                if isinstance(record, CorruptRecord):
                    continue
                try:
                    example = parse_example(record)
                    self._sample(example)
                except Exception as error:
                    raise_if_host(error, where=str(shard.path))
                    continue
                yield example

    def _sample(self, example: dict[str, FeatureValue]) -> ActionSample:
        """Actions and state of an episode."""
        state_keys = self._numeric_keys("steps/observation/state") or self._numeric_keys(
            "steps/observation/proprio"
        )
        actions = self._vector(example, self._action_keys)
        return ActionSample(actions, self._vector(example, state_keys) if state_keys else None)

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
        return tensor_rows(example.get(key, []), self.features[key], key)

    def _views(
        self, example: dict[str, FeatureValue], length: int, shaping: Shaping
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Pictures by view, uint8 [T, H, W, 3], and the names of views without one."""
        views: dict[str, np.ndarray] = {}
        empty: list[str] = []
        for name in self.views:
            encoded = example.get(self._cameras[name], [])
            if isinstance(encoded, np.ndarray) and len(encoded):
                raise EpisodeError(f"view '{name}' holds numbers, not encoded pictures")
            if isinstance(encoded, np.ndarray) or not any(encoded):
                empty.append(name)
                continue
            if len(encoded) != length:
                raise EpisodeError(f"view '{name}' has {len(encoded)} frames for {length} actions")
            frames = _pictures(name, encoded, shaping)
            if frames is None:
                empty.append(name)
            else:
                views[name] = frames
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
        """The first text that is not empty; "" if there is none."""
        for key in self._texts:
            value, feature = example.get(key, []), self.features[key]
            if not len(value):
                continue
            if key in self._labels:
                return self._labels[key].sentence(value, key)
            text = "" if is_number(feature) else text_of(value, feature, key)
            if text:
                return text
        return ""


def _pictures(name: str, encoded: list[bytes], shaping: Shaping) -> np.ndarray | None:
    """The pictures of a view for an `Episode`; None if all of them are of one flat colour."""
    frames, flat = FrameCollector(shaping, len(encoded), where=f"view '{name}'"), True
    for t, raw in enumerate(encoded):
        picture = decode_picture(raw, f"{name}[{t}]")
        flat = flat and bool(np.ptp(picture) == 0)
        frames.add(picture)
    return None if flat else frames.done().frames()


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
