"""Curves on disk: one JSON line per step for programs, TensorBoard events for people, both safe to reopen.

A run that was killed leaves at most one torn line, which is dropped on reopening. A run that resumes from an
earlier step drops what was written after it, so that no curve doubles back.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from roboalign_ray.foundation.storage.files import whole_file

JSONL = "metrics.jsonl"
_TAIL_BYTES = 16_384  # holds several lines


class MetricsWriter:
    """Writes scalars, texts and animations of one run.

    Args:
        folder: of the run; made where it is missing. `metrics.jsonl` and the event files lie in it.
        resume_at: the step that comes next in a resumed run: what was written for it or later is dropped. None
            keeps everything.
        tensorboard: whether event files are written too.
    """

    def __init__(self, folder: str | Path, *, resume_at: int | None = None, tensorboard: bool = True) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / JSONL
        if path.exists():
            _repair(path, resume_at)
        self._lines = path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder), purge_step=resume_at, flush_secs=10)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Named values of one step. A value that is not finite is kept as null in the JSON lines."""
        now = time.time()
        row = {name: _finite(value) for name, value in values.items()}
        self._lines.write(json.dumps({"step": int(step), "time": round(now, 3), **row}) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, float(value), int(step), walltime=now)

    def settings(self, step: int, profile: str) -> None:
        """The resolved settings, YAML, as they hold from a step on."""
        self.text(step, "profile", f"```yaml\n{profile}\n```")

    def text(self, step: int, name: str, text: str) -> None:
        """A text (Markdown) for TensorBoard's text tab."""
        if self._board is not None:
            self._board.add_text(name, text, int(step))

    def animation(self, step: int, name: str, images: np.ndarray, fps: float = 8.0) -> None:
        """An animated GIF for TensorBoard's image tab, from uint8 [T, H, W, 3]."""
        if self._board is not None:
            self.gif(step, name, encode_gif(images, fps))

    def gif(self, step: int, name: str, data: bytes) -> None:
        """A GIF for TensorBoard's image tab, as `encode_gif` makes one."""
        if self._board is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack("<HH", data[6:10])  # of the GIF's logical screen
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self._board._get_file_writer().add_summary(summary, int(step))

    def flush(self) -> None:
        """Bring everything to disk."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if not self._lines.closed:
            self.flush()
            self._lines.close()
            if self._board is not None:
                self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode_gif(images: np.ndarray, fps: float) -> bytes:
    """An endlessly repeating GIF of uint8 [T, H, W, 3]."""
    from PIL import Image

    pages = [Image.fromarray(image) for image in images]
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "GIF", save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0, disposal=2
    )
    return buffer.getvalue()


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The JSON lines of a run, in order; a torn last line is left out."""
    path = Path(folder) / JSONL
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [row for row in map(_parse, text.splitlines()) if row is not None]


def last_row(folder: str | Path) -> dict[str, Any] | None:
    """The newest complete JSON line of a run, read from the file's end; None where there is none."""
    path = Path(folder) / JSONL
    if not path.exists():
        return None
    with path.open("rb") as lines:
        lines.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        rows = [_parse(line) for line in lines.read().decode("utf-8", "replace").splitlines()]
    return next((row for row in reversed(rows) if row is not None), None)


def read_curves(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every scalar of a run: name -> (steps int64 [N], values float64 [N]); null values come back as NaN."""
    gathered: dict[str, tuple[list[int], list[float]]] = {}
    for row in read_rows(folder):
        for name, value in row.items():
            if name in ("step", "time"):
                continue
            steps, values = gathered.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(value if isinstance(value, (int, float)) else math.nan)
    return {
        name: (np.array(steps), np.array(values, dtype=np.float64))
        for name, (steps, values) in gathered.items()
    }


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _repair(path: Path, resume_at: int | None) -> None:
    """Drop torn lines, and those of steps from `resume_at` on; the file is replaced in one go."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = []
    for line in text.splitlines():
        row = _parse(line)
        if row is not None and (resume_at is None or row["step"] < resume_at):
            kept.append(line + "\n")
    repaired = "".join(kept)
    if repaired == text:
        return
    with whole_file(path) as draft:
        draft.write_text(repaired, encoding="utf-8")
