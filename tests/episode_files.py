"""Small datasets in the public formats, written by hand: what readers are tested on, made without the readers.

Frame t of a clip is a picture whose left half is bright in proportion to t and whose right half tells the view.
"""

from __future__ import annotations

import io
import itertools
import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

HEIGHT, WIDTH = 32, 48
CAMERA = "observation.images.front"


def clip(length: int, tint: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]; brightness of the left half rises by 8 a frame."""
    frames = np.zeros((length, HEIGHT, WIDTH, 3), np.uint8)
    frames[:, :, : WIDTH // 2] = (20 + 8 * np.arange(length) % 200).astype(np.uint8)[:, None, None, None]
    frames[:, :, WIDTH // 2 :, tint % 3] = 200
    return frames


def write_mp4(path: Path, frames: np.ndarray, fps: int, codec: str = "libx264") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def read_mp4(path: Path, first: int | None = None) -> np.ndarray:
    """Every frame, or the first ones, by a plain loop."""
    with av.open(str(path)) as container:
        frames = itertools.islice(container.decode(video=0), first)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def droid_states(length: int, seed: int = 0) -> np.ndarray:
    """A random walk [T, 7] whose roll wraps at pi."""
    rng = np.random.default_rng(seed)
    states = np.cumsum(rng.normal(scale=0.02, size=(length, 7)), axis=0)
    states[:, 3] = (np.pi - 0.05 + np.linspace(0, 0.2, length) + np.pi) % (2 * np.pi) - np.pi
    states[:, 6] = np.linspace(0, 1, length)
    return states


def write_droid(root: Path, lengths: list[int], surplus: int = 0) -> None:
    for number, length in enumerate(lengths):
        videos = [f"videos/train/{number}/{camera}.mp4" for camera in range(3)]
        for camera, video in enumerate(videos):
            write_mp4(root / video, clip(length + surplus, camera), 5)
        annotation = {
            "texts": [f"task {number}"],
            "episode_id": number,
            "success": number % 2,
            "videos": [{"video_path": video} for video in videos],
            "states": droid_states(length, number).tolist(),
        }
        path = root / "annotation" / "train" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(annotation))


def lerobot_rows(episode: int, length: int) -> dict[str, list]:
    rng = np.random.default_rng(episode)
    return {
        "action": rng.normal(size=(length, 4)).astype(np.float32).tolist(),
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32).tolist(),
        "timestamp": (np.arange(length) / 10).astype(np.float32).tolist(),
        "frame_index": list(range(length)),
        "episode_index": [episode] * length,
        "index": list(range(length)),
        "task_index": [episode % 2] * length,
    }


def lerobot_info(root: Path, version: str, episodes: int, fps: int = 10) -> None:
    v3 = version.startswith("v3")
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": episodes,
        "chunks_size": 1000,
        "fps": fps,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "action": {"dtype": "float32", "shape": [4], "names": {"motors": ["a", "b", "c", "gripper"]}},
            "observation.state": {"dtype": "float32", "shape": [3], "names": None},
            CAMERA: {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channel"]},
        },
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def write_lerobot_v2(root: Path, lengths: list[int]) -> None:
    lerobot_info(root, "v2.1", len(lengths))
    (root / "data" / "chunk-000").mkdir(parents=True)
    lines = []
    for episode, length in enumerate(lengths):
        pq.write_table(
            pa.table(lerobot_rows(episode, length)), root / f"data/chunk-000/episode_{episode:06d}.parquet"
        )
        write_mp4(root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4", clip(length, episode), 10)
        lines.append(json.dumps({"episode_index": episode, "tasks": [f"task {episode}"], "length": length}))
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")


def write_lerobot_v3(
    root: Path, clips: list[np.ndarray], rows: list[dict[str, list]], camera: str = CAMERA, fps: int = 10
) -> None:
    """v3.0: all rows in one Parquet file, all clips one after the other in one mp4."""
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(
        pa.concat_tables([pa.table(row) for row in rows]), root / "data/chunk-000/file-000.parquet"
    )
    write_mp4(root / f"videos/{camera}/chunk-000/file-000.mp4", np.concatenate(clips), fps)
    entries, start = [], 0
    for episode, frames in enumerate(clips):
        entries.append(
            {
                "episode_index": episode,
                "tasks": [f"task {episode}"],
                "length": len(frames),
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": start,
                "dataset_to_index": start + len(frames),
                f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": 0,
                f"videos/{camera}/from_timestamp": start / fps,
                f"videos/{camera}/to_timestamp": (start + len(frames)) / fps,
                "stats/action/mean": [0.0, 0.0, 0.0, 0.0],
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        start += len(frames)
    pq.write_table(pa.Table.from_pylist(entries), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = {
        "task_index": list(range(len(clips))),
        "__index_level_0__": [f"task {i}" for i in range(len(clips))],
    }
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")


# --- RLDS: protobuf by Google's library, checksums bit by bit ---------------------------------------------------


def example_class():
    """tf.train.Example as a protobuf class, from its published definition."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kinds = {"BytesList": "TYPE_BYTES", "FloatList": "TYPE_FLOAT", "Int64List": "TYPE_INT64"}
    for name, kind in kinds.items():
        file.message_type.add(name=name).field.add(
            name="value", number=1, label="LABEL_REPEATED", type=kind, json_name="value"
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(kinds, 1):
        snake = {"BytesList": "bytes_list", "FloatList": "float_list", "Int64List": "int64_list"}[name]
        feature.field.add(
            name=snake,
            number=number,
            label="LABEL_OPTIONAL",
            type="TYPE_MESSAGE",
            type_name=f".t.{name}",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label="LABEL_OPTIONAL", type="TYPE_STRING")
    entry.field.add(
        name="value", number=2, label="LABEL_OPTIONAL", type="TYPE_MESSAGE", type_name=".t.Feature"
    )
    features.field.add(
        name="feature",
        number=1,
        label="LABEL_REPEATED",
        type="TYPE_MESSAGE",
        type_name=".t.Features.FeatureEntry",
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label="LABEL_OPTIONAL", type="TYPE_MESSAGE", type_name=".t.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = example_class()


def example_bytes(features: dict[str, list]) -> bytes:
    """A serialised Example; a feature's kind follows from its first value."""
    message = EXAMPLE()
    for name, values in features.items():
        feature = message.features.feature[name]
        if values and isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif values and isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return message.SerializeToString()


def slow_masked_crc(data: bytes) -> int:
    """Masked CRC-32C, one bit after the other."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF


def frame_record(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return (
        length
        + struct.pack("<I", slow_masked_crc(length))
        + payload
        + struct.pack("<I", slow_masked_crc(payload))
    )


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _tensor(size: int, dtype: str = "float32") -> dict:
    return {"tensor": {"shape": {"dimensions": [str(size)]}, "dtype": dtype, "encoding": "none"}}


def write_rlds(root: Path, lengths: list[int], name: str = "bridge_dataset") -> list[dict[str, list]]:
    """An RLDS folder of PNG pictures (lossless) in two views, the second one black; returns the features written."""
    picture = {
        "image": {"shape": {"dimensions": [str(HEIGHT), str(WIDTH), "3"]}, "dtype": "uint8"},
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    }
    observation = {"image_0": picture, "image_1": picture, "state": _tensor(3)}
    steps = {
        "action": _tensor(7),
        "language_instruction": {"text": {}},
        "observation": {"featuresDict": {"features": observation}},
    }
    tree = {
        "featuresDict": {
            "features": {"steps": {"sequence": {"feature": {"featuresDict": {"features": steps}}}}}
        }
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "features.json").write_text(json.dumps(tree))
    rng = np.random.default_rng(0)
    written = []
    for number, length in enumerate(lengths):
        written.append(
            {
                "steps/action": rng.normal(size=7 * length).astype(np.float32).tolist(),
                "steps/observation/state": rng.normal(size=3 * length).astype(np.float32).tolist(),
                "steps/language_instruction": [f"task {number}".encode()] * length,
                "steps/observation/image_0": [png(frame) for frame in clip(length, number)],
                "steps/observation/image_1": [png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))] * length,
                "episode_metadata/file_path": [f"scene{number // 2}/out.npy".encode()],
            }
        )
    records = b"".join(frame_record(example_bytes(features)) for features in written)
    (root / f"{name}-train.tfrecord-00000-of-00001").write_bytes(records)
    return written
