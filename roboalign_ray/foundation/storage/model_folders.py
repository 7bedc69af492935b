"""Checks on model folders in transformers' format from untrusted sources: anything that would run code is refused.

Three things can run code: Python modules beside the weights (named by `auto_map`), weights stored as pickles, and
kernels that the configuration makes transformers fetch. Loaders also pass `trust_remote_code=False` and
`use_safetensors=True`. The checks here give a one-line error instead of a prompt on the terminal or a deep traceback.
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
    """Check that a model folder can be loaded without running code from it. A model name is not checked.

    Args:
        source: folder or model name.
        where: setting or folder, for the error.

    Raises:
        UserError: its weights are only pickles, or its configuration names kernels to fetch.
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
                remedy="convert them to safetensors if you trust their source",
            )
    for kernel in _kernels(folder / "config.json"):
        raise UserError(
            f"its config.json asks for code from elsewhere ({kernel!r})",
            where=where,
            remedy="remove attn_implementation from it",
        )


def wants_code(error: BaseException) -> bool:
    """Whether transformers refused a model because it needs custom code."""
    return "trust_remote_code" in str(error) or "contains custom code" in str(error)


def needs_code(source: str | Path, where: str) -> UserError:
    """The error for a model that needs custom code; see `wants_code`."""
    return UserError(
        f"'{source}' needs custom code (auto_map), which is not run",
        where=where,
        remedy="use a model that transformers supports without custom code",
    )


def _kernels(path: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError("is too large for a model's configuration", where=str(path))
        config = json.loads(path.read_bytes())
        yield from _kernel_repositories(config)
    except (OSError, ValueError, RecursionError):
        return  # the loader reports what is wrong with the file


def _kernel_repositories(config: Any) -> Iterator[str]:
    """Attention implementations that name a repository, at any depth of the configuration."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key in _ATTENTION:
            texts = value.values() if isinstance(value, dict) else [value]
            yield from (text for text in texts if isinstance(text, str) and "/" in text)
        yield from _kernel_repositories(value)
