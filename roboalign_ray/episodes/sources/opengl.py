"""Checks that the simulator is installed, and selects an OpenGL backend, software or hardware."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys

from roboalign_ray.foundation.failures import UserError

PACKAGES = "libegl1 libegl-mesa0 libosmesa6 libgl1-mesa-dri"
_PROBE = "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); context.free()"


def require_simulator() -> str:
    """Check that Meta-World can simulate and render here, and set MUJOCO_GL to a backend that works.

    Call it before the first import of MuJoCo, which reads MUJOCO_GL once.

    Returns:
        The backend, which is also set in MUJOCO_GL.

    Raises:
        UserError: Meta-World or MuJoCo is not installed, or no OpenGL backend works.
    """
    missing = [name for name in ("mujoco", "metaworld") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not installed",
            where="Meta-World simulation",
            remedy="pip install 'roboalign-ray[simulation]'",
        )
    backend = _working_backend(os.environ.get("MUJOCO_GL", ""))
    os.environ["MUJOCO_GL"] = backend
    return backend


@functools.cache
def _working_backend(asked: str) -> str:
    """The first backend that opens a context; each is tried in its own process, because a failure may abort it."""
    tried = [asked] if asked else ["egl", "osmesa"]
    for backend in tried:
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=120, check=False
        )
        if probe.returncode == 0:
            return backend
    raise UserError(
        f"OpenGL does not work (tried MUJOCO_GL={' and '.join(tried)})",
        where="Meta-World simulation",
        remedy=f"on Debian or Ubuntu: sudo apt-get install -y {PACKAGES}; then MUJOCO_GL=egl or osmesa",
    )
