"""What a run tells of itself while it runs: live view, trace, metrics pages."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from roboalign_ray.config.base import FrozenConfig


class TelemetryConfig(FrozenConfig):
    """Curves, trace and metrics of an alignment run. Nothing here changes a result.

    Attributes:
        prometheus: whether every update's scalars stand on Ray's metrics page, as ray_roboalign_….
        metrics_port: of that page where the job starts Ray itself; 0 takes a free one. A cluster that is joined has
            its own.
        wandb: project at Weights & Biases that the scalars go to as well; null sends nothing. Needs the extra
            "tracking".
        trace_events: events in logs/trace.json, about 200 bytes each; a full file becomes trace.1.json, in place of the
            one before, and another is begun. 0 writes no trace. [ours]
        window_s: seconds that the live view's throughput and busy shares are means over. [ours]
        points: of every curve in the live view. [ours]
        videos: held-out prompts of which TensorBoard gets a video at every evaluation, generated beside real; at most
            `alignment.held_out_prompts`. [ours]
        tolerance: largest difference between a score and the same one made again that `align --replay` lets pass: on
            another machine sums are taken in another order. [ours]
    """

    prometheus: bool = True
    metrics_port: int = Field(0, ge=0, le=65535)
    wandb: str | None = None
    trace_events: NonNegativeInt = 200_000
    window_s: float = Field(60.0, gt=0)
    points: PositiveInt = 32
    videos: NonNegativeInt = 2
    tolerance: float = Field(1e-5, ge=0)
