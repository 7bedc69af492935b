"""The clips of an input, listed and not yet read: what each is called, and where a worker finds it.

    a folder, a glob, a video file   one clip per video; its instruction in NAME.json beside it
    Parquet                          one clip per row; a column of videos, or of paths beside the file
    store of episodes or of pairs    one clip per row
    LeRobot, RLDS, DROID             one clip per episode, of one view

A path may also be a URI where it names videos or Parquet files. A listing is light: it opens no video.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.droid import VIEWS, DroidSource
from roboalign_ray.episodes.sources.extension import ExtensionSource
from roboalign_ray.episodes.sources.folder import detect_format, open_folder
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.sources.rlds import RldsSource
from roboalign_ray.episodes.store import open_store
from roboalign_ray.foundation.failures import UserError, printable, raise_if_host
from roboalign_ray.foundation.storage.parquet import open_parquet
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.foundation.storage.shards import STATISTICS
from roboalign_ray.judge.bench.generated import VIDEO_SUFFIXES
from roboalign_ray.judge.data.pairs import CONTENT, open_pairs
from roboalign_ray.pipelines.label.remote_files import RemoteFile, is_uri, list_files, read_file

Kind = Literal["file", "row", "pair", "stored", "episode"]
_PARQUET = ".parquet"


@dataclass(frozen=True)
class ClipInput:
    """Where clips are, and how their instructions and videos are found.

    Attributes:
        place: folder, file, glob or URI.
        instruction: one sentence for all clips, in place of their own; "" uses their own.
        instruction_column, video_column: columns of Parquet rows; "" for the video takes "video", else "path".
        view: view of episodes; "" takes the first one.
    """

    place: str
    instruction: str = ""
    instruction_column: str = "instruction"
    video_column: str = ""
    view: str = ""


@dataclass(frozen=True)
class Clip:
    """One clip: plain values, so that thousands can be sent to a worker.

    Attributes:
        clip_id: its name, unique within the input.
        kind: what kind of thing it is.
        place: its file, or the folder of its store or data set.
        number: its row or episode.
        stamp: size and time of its files; "" where they are not known.
        before: hash of the content and instruction that already have a score; "" if there is none.
        fault: why the listing already knows that it cannot be read.
    """

    clip_id: str
    kind: Kind
    place: str
    number: int = 0
    stamp: str = ""
    before: str = ""
    fault: str = ""


def list_clips(source: ClipInput) -> list[Clip]:
    """The clips of an input, in a fixed order.

    Raises:
        UserError: there is no such input, it holds no clip, or two clips have one name.
        HostError: the file system denies access.
    """
    clips = list(_listed(source))
    if not clips:
        raise UserError("holds no video", where=source.place, remedy=f"one of {', '.join(VIDEO_SUFFIXES)}")
    if len({clip.clip_id for clip in clips}) < len(clips):
        names = sorted(clip.clip_id for clip in clips)
        twice = next(name for name, other in pairwise(names) if name == other)
        raise UserError(f"two clips are named '{twice}'", where=source.place)
    return clips


def _listed(source: ClipInput) -> Iterator[Clip]:
    if is_uri(source.place):
        return _of_uri(source.place)
    path = Path(source.place).expanduser().absolute()
    if path.is_file():
        return _of_files([path], path.parent)
    if path.is_dir():
        return _of_folder(path, source)
    if glob.has_magic(source.place):
        paths = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        return _of_files(paths, Path(_fixed_part(str(path))))
    raise UserError(
        "no such folder, file or store", where=source.place, remedy="INPUT names what is to be scored"
    )


def _fixed_part(pattern: str) -> str:
    """The folder before the first part of a glob that is a pattern."""
    parts = Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return str(Path(*parts[:fixed]))


def _of_folder(folder: Path, source: ClipInput) -> Iterator[Clip]:
    if (folder / STATISTICS).is_file():
        pairs = read_object(folder / STATISTICS, "store statistics").get("content") == CONTENT
        names = open_pairs(folder).ids if pairs else open_store(folder).ids
        kind: Kind = "pair" if pairs else "stored"
        return (Clip(name, kind, str(folder), number) for number, name in enumerate(names))
    try:
        detect_format(folder)
    except UserError:  # no data set: a folder of videos or of Parquet files
        return _of_files(_below(folder), folder)
    records = enumerate(open_episodes(folder, source.view).records())
    return (Clip(name, "episode", str(folder), number) for number, (name, _) in records)


def open_episodes(folder: Path, view: str) -> LeRobotSource | RldsSource | DroidSource:
    """The data set of a folder, with one view; its first one if none is named.

    Raises:
        UserError: it cannot be read, or it has no such view.
    """
    source = open_folder(folder, views=(view,) if view else ())
    assert not isinstance(source, ExtensionSource)  # only where a format is named
    if view:
        return source
    names = VIEWS if isinstance(source, DroidSource) else source.view_names
    return open_episodes(folder, names[0]) if names else source


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise_if_host(error, where=str(folder))
        raise


def _of_files(paths: Sequence[Path], root: Path) -> Iterator[Clip]:
    folder = DatasetFolder(root)
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in (*VIDEO_SUFFIXES, _PARQUET):
            continue
        name = path.relative_to(root).as_posix()
        if suffix == _PARQUET:
            yield from _rows(name, str(path), _stamp(path), _row_count(path))
            continue
        clip = Clip(printable(name), "file", str(path), stamp=_stamp(path, path.with_suffix(".json")))
        try:
            folder.file(name, "video file")
        except EpisodeError as error:  # a link that leads out of the folder
            clip = replace(clip, fault=error.line())
        yield clip


def _stamp(*paths: Path) -> str:
    """Sizes and times of the files that exist."""
    found = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise_if_host(error, where=str(path))
            continue
        found.append(f"{status.st_size}-{status.st_mtime_ns}")
    return " ".join(found)


def _row_count(path: Path) -> int:
    try:
        with open_parquet(path) as file:
            return file.metadata.num_rows
    except Exception as error:  # damaged metadata may raise anything
        raise_if_host(error, where=str(path))
        raise UserError("cannot be read as Parquet", where=str(path)) from error


def _rows(name: str, place: str, stamp: str, count: int) -> Iterator[Clip]:
    return (Clip(printable(f"{name}#{row}"), "row", place, row, stamp) for row in range(count))


def _of_uri(uri: str) -> Iterator[Clip]:
    files = list_files(uri)
    stamps = {file.uri: file.stamp for file in files}
    for file in files:
        suffix = Path(file.name).suffix.lower()
        if suffix == _PARQUET:
            yield from _rows(file.name, file.uri, file.stamp, _remote_rows(file))
        elif suffix in VIDEO_SUFFIXES:
            sidecar = stamps.get(f"{file.uri.rpartition('.')[0]}.json", "")
            yield Clip(printable(file.name), "file", file.uri, stamp=f"{file.stamp} {sidecar}".strip())


def _remote_rows(file: RemoteFile) -> int:
    import pyarrow as pa

    try:
        return int(pq.read_metadata(pa.BufferReader(read_file(file.uri))).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError("cannot be read as Parquet", where=file.uri) from error
