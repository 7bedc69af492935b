"""The judge as a web service: how many replicas, how their work is batched, and what is refused. All of it is [ours].

What a replica runs on is its role's: `cluster.scorer` for the student, `cluster.teacher` for the teacher.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig


class ServingConfig(FrozenConfig):
    """One served judge.

    Attributes:
        min_replicas, max_replicas: bounds of autoscaling.
        target_requests: requests in a replica, judged or waiting, that autoscaling aims at.
        upscale_delay_s, downscale_delay_s: how long more or fewer replicas must be wanted before they come or go.
        batch: most videos judged together.
        batch_wait_s: longest wait for a batch to fill.
        queue: requests that a front end holds until a replica takes them, up to two batches each; more get status 429.
        timeout_s: longest wait for a score once a replica has the request; then it gets status 503.
        retry_after_s: what refused clients are told to wait.
        largest_body_mb: of a request, in MB.
        largest_video_pixels: of all frames together.
        failures_in_a_row: batches that fail one after the other before a replica says that it is ill, and is replaced.
    """

    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt = 4
    target_requests: float = Field(16.0, gt=0)
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    batch: PositiveInt = 16
    batch_wait_s: float = Field(0.02, ge=0)
    queue: PositiveInt = 256
    timeout_s: float = Field(120.0, gt=0)
    retry_after_s: PositiveInt = 2
    largest_body_mb: float = Field(64.0, gt=0)
    largest_video_pixels: PositiveInt = 100_000_000
    failures_in_a_row: PositiveInt = 3

    @property
    def requests_per_replica(self) -> int:
        """Most requests in one replica: a batch that is judged and one that gathers."""
        return 2 * self.batch

    @model_validator(mode="after")
    def _check_bounds(self) -> ServingConfig:
        if self.min_replicas > self.max_replicas:
            raise ConfigError(
                f"min_replicas {self.min_replicas} is larger than max_replicas {self.max_replicas}",
                where="serving",
                remedy="change one of them",
            )
        if self.target_requests > self.requests_per_replica:
            raise ConfigError(
                f"target_requests {self.target_requests:g} is more than the {self.requests_per_replica} that a replica "
                "takes, two batches",
                where="serving",
                remedy="lower it, or the service never grows",
            )
        return self
