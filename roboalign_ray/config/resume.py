"""Settings that may change when a run is resumed, with the reasons; and the differences between two settings trees.

The content of a run must be what its settings would produce. So a setting may change only if no weight, score or label
depends on it. All other changes need a new run, which may begin from a checkpoint of the old one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_UNREAD = "an alignment run does not read it"
_WHERE = "where the work is done, how fast, and how long an answer may take"
_STOPS = "when the run ends and what is kept of it; updates are the same"
_LOOKS = "evaluation only; no update depends on it"

ALIGNMENT: Mapping[str, str] = {
    "name": "a label",
    "output": "where files go",
    "cluster": _WHERE,
    "serving": _UNREAD,
    "scoring": _UNREAD,
    "bench": _UNREAD,
    "simulation": _UNREAD,
    "tokenizer_training": _UNREAD,
    "pretraining": _UNREAD,
    "world_model_kind": _UNREAD,
    "diffusion.training": _UNREAD,
    "inverse_dynamics": _UNREAD,
    "evaluation": _LOOKS,
    "telemetry": "logging and monitoring; no update depends on it",
    "alignment.updates": _STOPS,
    "alignment.checkpoint_every": _STOPS,
    "alignment.checkpoints": _STOPS,
    "alignment.evaluate_every": _LOOKS,
    "alignment.held_out_prompts": _LOOKS,
    "alignment.held_out_samples": _LOOKS,
    "asynchrony.concurrency": _WHERE,
    "asynchrony.tries": "when a prompt that fails is given up",
    "asynchrony.backpressure": _WHERE,
    "asynchrony.liveness": "deadlines",
    "asynchrony.workload": "read by `roboalign simulate` alone",
    "teacher.training": _UNREAD,
    "teacher.small": _UNREAD,
    "teacher.labelling": "how labels are requested; each video's label is the same",
    "teacher.engine": _WHERE,
    "teacher.server": _WHERE,
}
"""Dotted path of a section or a value of an alignment run -> reason why it may change."""

_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """One setting that differs.

    Attributes:
        path: dotted path.
        old, new: JSON values; None for null, and also if there is none, see `absent`.
        absent: side without the setting: "", "old" or "new".
    """

    path: str
    old: Any
    new: Any
    absent: str = ""

    def line(self) -> str:
        """One line, such as "alignment.learning_rate: 5e-05 -> 1e-06"."""
        old = "(not known then)" if self.absent == "old" else _shown(self.old)
        new = "(not known now)" if self.absent == "new" else _shown(self.new)
        return f"{self.path}: {old} -> {new}"

    def under(self, paths: Collection[str]) -> bool:
        """Whether one of these paths is this setting's, or that of a section around it."""
        return any(self.path == path or self.path.startswith(f"{path}.") for path in paths)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[Difference]:
    """Every setting that differs between two trees of JSON values, sorted by path.

    Args:
        before, now: trees from `JobConfig.public`.
        defaults: defaults of all settings. A setting that the older tree lacks differs only if it is not the default.
    """
    return sorted(_walk("", before, now, defaults or {}), key=lambda difference: difference.path)


def _walk(prefix: str, old: Any, new: Any, default: Any) -> Iterator[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {*old, *new}:
            known = default.get(key, _ABSENT) if isinstance(default, Mapping) else _ABSENT
            path = f"{prefix}.{key}" if prefix else str(key)
            yield from _walk(path, old.get(key, _ABSENT), new.get(key, _ABSENT), known)
    elif old is _ABSENT and new != default:
        yield Difference(prefix, None, new, absent="old")
    elif new is _ABSENT:
        yield Difference(prefix, old, None, absent="new")
    elif old is not _ABSENT and old != new:
        yield Difference(prefix, old, new)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
