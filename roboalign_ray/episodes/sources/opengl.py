"""Whether the simulator is installed and which software or hardware OpenGL it can draw with."""

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
    """Check that Meta-World can simulate and draw here, and point MuJoCo at an OpenGL that works.

    Call it before MuJoCo is first imported: MuJoCo reads MUJOCO_GL once.

    Returns:
        The backend, also left in MUJOCO_GL.

    Raises:
        UserError: Meta-World or MuJoCo is not installed, or no OpenGL draws.
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
    """The first backend that opens a context; each is tried in a process of its own, as a failure may abort it."""
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
