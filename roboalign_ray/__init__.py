"""RoboAlign: robot video world models, aligned with reinforcement learning.

The library half of the project: PyTorch, NumPy and gymnasium, never Ray. Importing it registers a lazy hook
that makes CPU-only torch builds usable beside CUDA-built torchvision wheels (see `foundation.torchvision_guard`), and
says how long OpenMP's threads may spin (see `foundation.thread_waits`), which counts where torch is imported later.

The public names (`roboalign_ray.api`) are loaded when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from roboalign_ray.foundation.thread_waits import wait_briefly as _wait_briefly
from roboalign_ray.foundation.torchvision_guard import install as _install_torchvision_guard

__version__ = "0.1.0"

_install_torchvision_guard()
_wait_briefly()

if TYPE_CHECKING:
    from roboalign_ray.api import *  # noqa: F403

_PUBLIC = (
    "Episode",
    "Failed",
    "JobConfig",
    "Profile",
    "Prompt",
    "RewardInput",
    "Scored",
    "UserError",
    "WorldModel",
    "align",
    "evaluate",
    "load_job",
    "open_judge",
    "open_store",
    "open_world_model",
    "plan",
    "plan_actions",
    "pretrain",
    "roll_out",
    "score",
)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'roboalign_ray' has no attribute '{name}'")
    from roboalign_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
