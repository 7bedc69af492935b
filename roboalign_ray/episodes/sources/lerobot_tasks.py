"""Instructions of LeRobot episodes: sentences in the episode table, or numbers of the task table.

v2.x has meta/tasks.jsonl, v3.0 meta/tasks.parquet, whose sentences may be a column `task` or the table's index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from roboalign_ray.episodes.episode import EpisodeError
from roboalign_ray.episodes.sources.dataset_folder import DatasetFolder
from roboalign_ray.episodes.sources.lerobot_tables import whole_numbers
from roboalign_ray.episodes.sources.metadata import read_small
from roboalign_ray.foundation.storage.parquet import read_columns

_MOST_TABLE_BYTES = 64 << 20
_SENTENCE_COLUMNS = ("task", "__index_level_0__", "tasks", "index")


def read_tasks(folder: DatasetFolder) -> dict[int, str]:
    """Sentences by `task_index`; {} if the dataset has no task table.

    Raises:
        EpisodeError: the table cannot be read, or two sentences share a number.
    """
    for name, reader in (("meta/tasks.parquet", _parquet_rows), ("meta/tasks.jsonl", _json_rows)):
        if not (folder.root / name).exists():
            continue
        tasks: dict[int, str] = {}
        for number, sentence in reader(folder, name):
            if not isinstance(number, int) or not isinstance(sentence, str):
                raise EpisodeError(f"task {number!r:.40} is no number with a sentence", where=name)
            if tasks.setdefault(number, sentence) != sentence:
                raise EpisodeError(f"two tasks have the number {number}", where=name)
        return tasks
    return {}


def _parquet_rows(folder: DatasetFolder, name: str) -> list[tuple[Any, Any]]:
    table = read_columns(folder.file(name), lambda column: True)
    texts = [field.name for field in table.schema if _is_text(field.type)]
    column = next(
        (known for known in _SENTENCE_COLUMNS if known in texts), texts[0] if len(texts) == 1 else ""
    )
    if "task_index" not in table.column_names or not column:
        raise EpisodeError("holds no 'task_index' with a column of sentences", where=name)
    return list(zip(table["task_index"].to_pylist(), table[column].to_pylist(), strict=True))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # a category of pandas
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _json_rows(folder: DatasetFolder, name: str) -> list[tuple[Any, Any]]:
    rows = []
    text = read_small(folder.file(name), _MOST_TABLE_BYTES).decode("utf-8-sig")
    lines = text.split("\n")  # sentences may hold other ends of lines
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            row = json.loads(line)
            rows.append((row["task_index"], row["task"]))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise EpisodeError(f"line {number} is no task ({type(error).__name__})", where=name) from error
    return rows


def sentences(tasks: Sequence[str | int], table: Mapping[int, str]) -> list[str]:
    """The sentences of an episode, each once, in order.

    Raises:
        EpisodeError: a number is not in the task table.
    """
    found: dict[str, None] = {}
    for task in tasks:
        if isinstance(task, int) and task not in table:
            raise EpisodeError(f"task_index {task} is not in the task table", where="meta/tasks")
        found[(table[task] if isinstance(task, int) else task).strip()] = None
    return list(found)


def task_numbers(rows: pa.Table) -> list[int]:
    """The different values of `task_index` in the rows, in order; [] without that column."""
    if "task_index" not in rows.column_names:
        return []
    return list(dict.fromkeys(whole_numbers(rows, "task_index").to_pylist()))
