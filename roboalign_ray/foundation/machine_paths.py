"""Keep one machine's folders out of files that are shared: an absolute path becomes "…/" and its last name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from roboalign_ray.foundation.secrets import masked

HIDDEN = "…"

_START = r"(?:~[\w.-]*)?/|[A-Za-z]:[\\/]"
# A text that is one path from its first character on, after "--option=", "key=" or "file://"; spaces belong to it.
_WHOLE = re.compile(rf"(?P<before>(?:[\w.@-]+=)*(?:file://)?)(?P<path>(?:{_START}).*)", re.DOTALL)
# A path inside a longer text, up to the next space, quote, comma or bracket.
_INSIDE = re.compile(rf"(?P<before>(?<![\w.:/~…-])|(?<=file://))(?P<path>(?:{_START})[^\s'\",;()\[\]{{}}]+)")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+://")


def without_machine_paths(text: str) -> str:
    """The text with every absolute path cut down to its last name; relative paths and other URIs stay."""
    if (whole := _WHOLE.fullmatch(text)) and not _SCHEME.search(whole["path"]):
        return whole["before"] + _cut(whole["path"])
    return _INSIDE.sub(lambda match: match["before"] + _cut(match["path"]), text)


def shareable(value: Any) -> Any:
    """Secrets in URIs masked and absolute paths cut, in every string of nested dicts, lists and tuples."""
    if isinstance(value, str):
        return without_machine_paths(masked(value))
    if isinstance(value, dict):
        return {shareable(key): shareable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(shareable(item) for item in value)
    return value


def _cut(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/")).name
    return f"{HIDDEN}/{name}" if name and not name.startswith("~") else HIDDEN
