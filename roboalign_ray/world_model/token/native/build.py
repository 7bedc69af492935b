"""Compiles decode.c for this machine, once per user, and loads it.

The library is cached in $ROBOALIGN_CACHE or ~/.cache/roboalign. Its name is a hash of its inputs (sources, compiler,
flags and processor), so machines of several kinds may share a home folder. It is written under another name and then
renamed, so that concurrent processes never read an incomplete file.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch

SWITCH = "ROBOALIGN_NATIVE"
SOURCES = ("decode.c", "team.h", "vectors.h")
COMMON_FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-pthread", "-shared", "-fPIC")
MACHINE_FLAGS = ("-march=native", "-mcpu=native")  # tried in turn: compilers use different names
SECONDS = 600

logger = logging.getLogger(__name__)


def native_library(dtype: torch.dtype, device: torch.device, head_dim: int) -> ctypes.CDLL | None:
    """The compiled library if it supports the model: on a CPU, in float32, head size a multiple of eight; else None."""
    if os.environ.get(SWITCH, "1").lower() in ("0", "false", "no", "off"):
        return None
    if device.type != "cpu" or dtype != torch.float32 or head_dim % 8:
        return None
    return _library(os.environ.get("PATH", ""))


@functools.cache
def _library(path: str) -> ctypes.CDLL | None:
    """The library, compiled at most once per process and search path; a failure is logged in one line."""
    try:
        return _opened(_built(_compiler(path)))
    except OSError as error:
        logger.warning("rollout engine runs on PyTorch's kernels, several times slower: %s", error)
        return None


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.panel_width.restype = library.forward.restype = ctypes.c_int64
    return library


def cache_folder() -> Path:
    """Folder of compiled libraries."""
    chosen = os.environ.get("ROBOALIGN_CACHE")
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "roboalign") / "native"


def _compiler(path: str) -> list[str]:
    chosen = shlex.split(os.environ.get("CC", ""))
    for name in chosen[:1] or ("cc", "gcc", "clang"):
        found = shutil.which(name, path=path)
        if found:
            return [found, *chosen[1:]]
    raise OSError("no C compiler found (cc, gcc, clang or $CC); install one, such as Debian's package gcc")


def _built(compiler: list[str]) -> Path:
    """The library's path; compiles it if it is missing. Raises OSError with the compiler's last lines."""
    package = resources.files(__package__)
    sources = {name: package.joinpath(name).read_text(encoding="utf-8") for name in SOURCES}
    parts = (sources, compiler, COMMON_FLAGS, MACHINE_FLAGS, _processor())
    target = cache_folder() / f"decode-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as folder:
        for name, text in sources.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        os.replace(_compiled(compiler, Path(folder)), target)
    return target


def _compiled(compiler: list[str], folder: Path) -> Path:
    """Compile the sources of a folder there."""
    made, words = folder / "decode.so", ""
    for flag in MACHINE_FLAGS:
        command = [*compiler, *COMMON_FLAGS, flag, str(folder / SOURCES[0]), "-o", str(made), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler[0]} took longer than {SECONDS} s") from None
        if done.returncode == 0:
            return made
        words = words or done.stderr.strip().rpartition("\n")[2]
    raise OSError(f"{compiler[0]} cannot compile decode.c: {words}")


def _processor() -> str:
    """The properties of the processor that determine -march=native."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kept = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(dict.fromkeys(line for line in lines if line.startswith(kept)))
