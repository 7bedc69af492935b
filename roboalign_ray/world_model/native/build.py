"""Compiles decode.c for this machine, once per user, and loads it.

The library is cached in $ROBOALIGN_CACHE or ~/.cache/roboalign, under a name that hashes all that it is made of: the
source, the compiler, the flags and the processor. It is written under another name and then renamed, so processes that
compile at the same time do not meet half a file. `-fopenmp` asks for libgomp.so.1, which PyTorch has loaded already
under that name: both share one runtime and one pool of threads.
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
COMMON_FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-shared", "-fPIC")
# Tried in turn: compilers name the processor differently, and some come without OpenMP (then one thread works).
MACHINE_FLAGS = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
)
SECONDS = 600

logger = logging.getLogger(__name__)


def native_library(dtype: torch.dtype, device: torch.device, head_dim: int) -> ctypes.CDLL | None:
    """The compiled library where it can serve: on a CPU, in float32, heads a multiple of eight wide; else None."""
    if os.environ.get(SWITCH, "1").lower() in ("0", "false", "no", "off"):
        return None
    if device.type != "cpu" or dtype != torch.float32 or head_dim % 8:
        return None
    return _library(os.environ.get("PATH", ""))


@functools.cache
def _library(path: str) -> ctypes.CDLL | None:
    """Compiled at most once per process and search path; says so in one line where that fails."""
    try:
        library = ctypes.CDLL(str(_built(_compiler(path))))
    except OSError as error:
        logger.warning("rollout engine runs on PyTorch's kernels, several times slower: %s", error)
        return None
    library.panel_width.restype = library.forward.restype = ctypes.c_int64
    return library


def cache_folder() -> Path:
    """Where compiled libraries live."""
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
    """The library's path; compiles where it is not there yet. Raises OSError with the compiler's last words."""
    source = resources.files(__package__).joinpath("decode.c").read_text()
    parts = (source, compiler, COMMON_FLAGS, MACHINE_FLAGS, _processor())
    target = cache_folder() / f"decode-{hashlib.sha256(repr(parts).encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as folder:
        made, words = Path(folder) / "decode.so", ""
        for flags in MACHINE_FLAGS:
            command = [*compiler, *COMMON_FLAGS, *flags, "-x", "c", "-", "-o", str(made), "-lm"]
            try:
                done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                raise OSError(f"{compiler[0]} took longer than {SECONDS} s") from None
            if done.returncode == 0:
                os.replace(made, target)
                return target
            words = words or done.stderr.strip().rpartition("\n")[2]
    raise OSError(f"{compiler[0]} cannot compile decode.c: {words}")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kept = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(dict.fromkeys(line for line in lines if line.startswith(kept)))
