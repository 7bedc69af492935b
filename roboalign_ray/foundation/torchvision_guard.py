"""Make `import torchvision` work when torch is a CPU build and torchvision a CUDA build.

PyPI has torchvision built only for CUDA. With a CPU build of torch, its C library does not load, and its Python part
then fails while it registers fake kernels for operators that were never defined. When the two operator schemas are
declared first, the pure-Python parts (transforms, models) can be imported. nms and image codecs stay unavailable;
this package does not use them. With a CUDA build of torch the guard does nothing.

The hook runs when torchvision is first imported, so importing `roboalign_ray` stays free of torch.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []  # torch.library.Library unregisters its schemas when collected


def _declare_operators() -> None:
    import torch

    if not _cpu_build():
        return
    for schema in _SCHEMAS:
        name = schema.split("(", 1)[0]
        if hasattr(torch.ops.torchvision, name):
            continue
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define(schema)
        _libraries.append(library)


def _cpu_build() -> bool:
    import torch

    return torch.version.cuda is None and torch.version.hip is None


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Declares the operators just before torchvision is loaded, then removes itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def install() -> None:
    """Register the hook once per process. It has no effect when torchvision is absent or already imported."""
    if "torchvision" in sys.modules or any(isinstance(f, _TorchvisionFinder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _TorchvisionFinder())


def guard_children() -> None:
    """Register the hook in all Python processes that this process starts from now on.

    vLLM needs this: it starts helper processes that import torchvision before any of its plugins. With a GPU build of
    torch nothing changes.
    """
    if not _cpu_build():
        return
    folder = str(Path(__file__).parent / "startup")
    known = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    if folder not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *known])
