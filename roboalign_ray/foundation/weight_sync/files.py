"""Whether a file of weights is whole, without reading the weights: its header and its size belong together."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from roboalign_ray.foundation.failures import UserError, first_line, raise_if_host


def check_weights_file(path: Path) -> None:
    """Read a safetensors file's header.

    Raises:
        UserError: it is missing, cut short, or no such file.
        HostError: it cannot be opened.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise_if_host(error, where=str(path))
        raise UserError(
            f"cannot be read as weights: {first_line(error)}",
            where=str(path),
            remedy="the file is damaged; write it again",
        ) from error
    if not names:
        raise UserError("holds no weights", where=str(path), remedy="write it again")
