"""Model folders in transformers' format, which may come from anybody: what in them would run code is refused.

Three things can: modules beside the weights (`auto_map` names them), weights as pickles, and kernels that the
configuration lets transformers fetch. Loaders pass `trust_remote_code=False` and `use_safetensors=True` besides; what
is found here is told in one line, instead of a question on the terminal or an error from deep inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roboalign_ray.foundation.failures import UserError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_LARGEST = 64 << 20  # bytes of a JSON file; tokenizers have some of tens of megabytes
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation")


def check_model_folder(source: str | Path, where: str) -> None:
    """Whether a model's folder can be loaded without running code from it; names to be looked up pass.

    Args:
        source: folder or name.
        where: setting or folder, for the error.

    Raises:
        UserError: it has weights as pickles alone, or its configuration names kernels to be fetched.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            raise UserError(
                f"has its weights in {pickles[0]}, a pickle, which can run code",
                where=where,
                remedy="convert them to safetensors where you trust them",
            )
    for kernel in _kernels(folder / "config.json"):
        raise UserError(
            f"its config.json asks for code from elsewhere ({kernel!r})",
            where=where,
            remedy="remove attn_implementation from it",
        )


def wants_code(error: BaseException) -> bool:
    """Whether transformers refused a model since it brings code of its own."""
    return "trust_remote_code" in str(error) or "contains custom code" in str(error)


def needs_code(source: str | Path, where: str) -> UserError:
    """The error for a model of which `wants_code` is true."""
    return UserError(
        f"'{source}' brings code of its own (auto_map), which is not run",
        where=where,
        remedy="use a model that transformers itself knows",
    )


def _kernels(path: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError("is too large for a model's configuration", where=str(path))
        config = json.loads(path.read_bytes())
        yield from _named(config)
    except (OSError, ValueError, RecursionError):
        return  # the loader tells what is wrong with it


def _named(config: Any) -> Iterator[str]:
    """Implementations of attention that are a repository's name, at any depth."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key in _ATTENTION:
            texts = value.values() if isinstance(value, dict) else [value]
            yield from (text for text in texts if isinstance(text, str) and "/" in text)
        yield from _named(value)
