"""Keep passwords and keys inside URIs out of everything that people and files see.

A URI may carry a user's password ("s3://key:secret@bucket") or a signature in its query ("?secret_key=…"). Jobs use
such URIs as they were given; messages, reports, manifests and trackers show them masked.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"

_SCHEME = r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*:"
_USER = re.compile(_SCHEME + r"//)(?P<user>[^/\s'\"?#]+)@")
# Passwords are often written as they are, with slashes in them; "host:80/" is a port. A path has one slash of two.
_PASSWORD = re.compile(_SCHEME + r"//?)(?P<user>[^/\s'\"?#:@]*:(?!\d{1,5}[/?#])[^\s'\"]+)@")
_QUERY = re.compile(
    r"(?P<name>[?&;#][^=&\s'\"]*(?:key|secret|token|pass|pwd|credential|sig|auth|jwt)[^=&\s'\"]*=)(?P<value>[^&\s'\"#]+)",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text with every user part and every secret of a query masked, in all URIs that it holds."""
    if ":/" not in text:
        return text
    for user in (_PASSWORD, _USER):
        text = user.sub(rf"\g<scheme>{MASK}@", text)
    return _QUERY.sub(rf"\g<name>{MASK}", text)


def masked_tree(value: Any) -> Any:
    """`masked` for every string in nested dicts, lists and tuples; all else stays as it is."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked_tree(item) for item in value)
    return value
