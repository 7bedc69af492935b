"""Videos with instructions for scoring tests: sound ones, and one of every kind that cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from made_videos import film

GOOD = ("a.mp4", "deep/b.mp4", "z.mp4")
BAD = {
    "empty.mp4": "cannot be decoded",
    "noise.mp4": "cannot be decoded",
    "one.mp4": "a video of 1 frame(s) cannot be judged",
    "huge.mp4": "pixels",
    "sound.mp4": "no video stream",
    "torn.mp4": "",  # where it is cut decides what the reader says
    "mute.mp4": "no 'mute.json' beside it",
    "silent.mp4": "has no instruction",
}
MOST_PIXELS = 64 * 64 * 40


def frames_of(seed: int, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def write_clip(path: Path, content: bytes, instruction: str | None = "open it") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if instruction is not None:
        path.with_suffix(".json").write_text(json.dumps({"instruction": instruction}))


def good_clip(seed: int, count: int = 6) -> bytes:
    return film(frames_of(seed, count), rate=5)


def sound_alone() -> bytes:
    import io

    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        track = out.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        out.mux(track.encode(silence))
        out.mux(track.encode(None))
    return file.getvalue()


def write_clips(folder: Path) -> None:
    """The clips of `GOOD` and `BAD`."""
    for seed, name in enumerate(GOOD):
        write_clip(folder / name, good_clip(seed), f"open drawer {seed}")
    whole = good_clip(9, 12)
    write_clip(folder / "empty.mp4", b"")
    write_clip(folder / "noise.mp4", bytes(range(256)) * 8)
    write_clip(folder / "one.mp4", good_clip(5, 1))
    write_clip(folder / "huge.mp4", good_clip(6, 41))
    write_clip(folder / "sound.mp4", sound_alone())
    write_clip(folder / "torn.mp4", whole[: len(whole) * 2 // 3])
    write_clip(folder / "mute.mp4", whole, None)
    write_clip(folder / "silent.mp4", whole, "  ")
