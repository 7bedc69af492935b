"""RoboAlign: robot video world models, aligned with reinforcement learning.

The library half of the project: PyTorch, NumPy and gymnasium, never Ray. Importing it registers a lazy hook
that makes CPU-only torch builds usable beside CUDA-built torchvision wheels (see `foundation.torchvision_guard`), and
says how long OpenMP's threads may spin (see `foundation.thread_waits`), which counts where torch is imported later.
"""

from roboalign_ray.foundation.thread_waits import wait_briefly as _wait_briefly
from roboalign_ray.foundation.torchvision_guard import install as _install_torchvision_guard

__version__ = "0.1.0"

_install_torchvision_guard()
_wait_briefly()
