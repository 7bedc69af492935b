"""Mask passwords and keys inside URIs before they are shown or written to files.

A URI may hold a user's password ("s3://key:secret@bucket") or a signature in its query ("?secret_key=…"). Jobs use
such URIs unchanged; messages, reports, manifests and trackers show them masked.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"

_SCHEME = r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:"
_USER = re.compile(_SCHEME + r"//)(?P<user>[^/\s'\"?#]+)@")
# Passwords are often written unescaped, with slashes in them. "host:80/" is a port, not a password. A URI that was
# normalised as a path has one slash instead of two.
_PASSWORD = re.compile(_SCHEME + r"//?)(?P<user>[^/\s'\"?#:@]*:(?!\d{1,5}[/?#])[^\s'\"]+)@")
_QUERY = re.compile(
    r"(?P<name>[?&;#][^=&\s'\"]*(?:key|secret|token|pass|pwd|credential|sig|auth|jwt)[^=&\s'\"]*=)(?P<value>[^&\s'\"#]+)",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text with the user part and the query secrets of every URI masked."""
    if ":/" not in text:
        return text
    for user in (_PASSWORD, _USER):
        text = user.sub(rf"\g<scheme>{MASK}@", text)
    return _QUERY.sub(rf"\g<name>{MASK}", text)


def masked_tree(value: Any) -> Any:
    """Apply `masked` to every string in nested dicts, lists and tuples; other values stay unchanged."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked_tree(item) for item in value)
    return value
