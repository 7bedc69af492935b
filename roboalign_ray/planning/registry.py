"""The planner that a name stands for: built in, installed, or "module:attribute" from the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roboalign_ray.config.complaints import read_settings
from roboalign_ray.planning.protocol import Planner
from roboalign_ray.plugins import Registry, lacks

PLANNERS: Registry[type[Planner]] = Registry(
    "planners",
    "planner",
    {
        "cem": "roboalign_ray.planning.cem:CemPlanner",
        "mppi": "roboalign_ray.planning.mppi:MppiPlanner",
        "random_shooting": "roboalign_ray.planning.random_shooting:RandomShootingPlanner",
        "best_of_n": "roboalign_ray.planning.best_of_n:BestOfNPlanner",
        "refine": "roboalign_ray.planning.refine:RefinePlanner",
    },
    lacks("plan"),
)


def open_planner(name: str, settings: Mapping[str, Any] | None = None) -> Planner:
    """A planner with its settings, checked by the model `Config` of its class.

    Raises:
        UserError: no such planner, or it does not take these settings.
    """
    found: Any = PLANNERS.load(name, "planner")
    config = read_settings(found, settings or {}, f"planner {name}")
    return found() if config is None else found(config)
