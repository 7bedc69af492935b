"""Monitoring of a running job: live view, trace, metrics pages."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from roboalign_ray.config.base import FrozenConfig


class TelemetryConfig(FrozenConfig):
    """Curves, trace and metrics of an alignment run. They do not change the result.

    Attributes:
        prometheus: whether every update's scalars are on Ray's metrics page, as ray_roboalign_….
        metrics_port: port of that page if the job starts Ray itself; 0 takes a free one. A joined cluster has its own
            port.
        wandb: project at Weights & Biases that also gets the scalars; null sends nothing. Needs the extra
            "tracking".
        trace_events: maximum of events in logs/trace.json, about 200 bytes each; a full file replaces trace.1.json, and
            a new one is begun. 0 writes no trace. [ours]
        window_s: seconds over which the live view averages throughput and busy shares. [ours]
        points: number of points of every curve in the live view. [ours]
        videos: number of held-out prompts of which TensorBoard gets a video (generated beside real) at every
            evaluation; at most `alignment.held_out_prompts`. [ours]
        tolerance: largest difference that `align --replay` accepts between a score and the recomputed one: another
            machine may add numbers in another order. [ours]
    """

    prometheus: bool = True
    metrics_port: int = Field(0, ge=0, le=65535)
    wandb: str | None = None
    trace_events: NonNegativeInt = 200_000
    window_s: float = Field(60.0, gt=0)
    points: PositiveInt = 32
    videos: NonNegativeInt = 2
    tolerance: float = Field(1e-5, ge=0)
