"""Exports an alignment job's scalars on Ray's metrics page, which Prometheus reads.

Ray serves the page on every node (`metrics_url`) and adds the prefix "ray_" to every name: the scalar `reward_mean`
becomes ray_roboalign_reward_mean{job="demo"}. Ray updates the values about every ten seconds
(RAY_metrics_report_interval_ms).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

PREFIX = "roboalign_"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")
# "failures/worker_lost" is one of several series: the part after the slash becomes a label of this name.
_LABELS = {"failures": "kind", "staleness": "age"}
# Scalars that count events of an update become counters, with the suffix that Prometheus prescribes.
_COUNTED = ("samples", "failed_samples", "failed_groups", "dropped_groups", "flat_groups", "failures")


class RayMetrics:
    """A sink for scalars.

    Args:
        job: label of every series.
    """

    def __init__(self, job: str) -> None:
        self._job = job
        self._metrics: dict[str, Any] = {}
        self._labelled: set[tuple[str, str]] = set()

    def scalars(self, version: int, values: Mapping[str, float]) -> None:
        """Set one update's scalars; values that are not finite are left out.

        Args:
            version: number of updates done.
            values: values by curve name.
        """
        for name, value in values.items():
            if math.isfinite(value):
                family, _, label = name.partition("/")
                if family in _LABELS and label:
                    self._set(family, label, value)
                else:
                    self._set(name, None, value)
        for family, label in self._labelled:  # an age without groups
            if f"{family}/{label}" not in values and family not in _COUNTED and family in _families(values):
                self._set(family, label, 0.0)
        # Set last: a page may be written at any time, and a page with this update number must have its values.
        self._set("version", None, float(version))

    def close(self) -> None:
        """Do nothing: Ray keeps the values until the driver ends."""

    def _set(self, family: str, label: str | None, value: float) -> None:
        name = PREFIX + _NOT_IN_NAMES.sub("_", family)
        key = _LABELS.get(family) if label is not None else None
        tags = {"job": self._job} | ({key: label} if key and label is not None else {})
        if label is not None:
            self._labelled.add((family, label))
        if family in _COUNTED:
            if value > 0:
                self._metric(Counter, f"{name}_total", tuple(tags)).inc(value, tags)
        else:
            self._metric(Gauge, name, tuple(tags)).set(value, tags)

    def _metric(self, cls: type, name: str, keys: tuple[str, ...]) -> Any:
        if name not in self._metrics:
            self._metrics[name] = cls(name, description="see docs/monitoring.md", tag_keys=keys)
        return self._metrics[name]


def metrics_url() -> str:
    """The metrics page of the driver's node; on a cluster every node has its own page."""
    context = ray.get_runtime_context()
    [node] = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _families(values: Mapping[str, float]) -> set[str]:
    return {name.partition("/")[0] for name in values}
