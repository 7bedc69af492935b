"""The judge as a web service: how many replicas, how much is accepted, and what is refused. All of it is [ours].

What a replica runs on is its role's: `cluster.scorer` for the student, `cluster.teacher` for the teacher.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig


class ServingConfig(FrozenConfig):
    """One served judge.

    Attributes:
        min_replicas, max_replicas: bounds of autoscaling.
        target_requests: accepted requests per replica that autoscaling aims at.
        upscale_delay_s, downscale_delay_s: how long more or fewer replicas must be wanted before they come or go.
        batch: most videos judged together; a batch takes what waits, it does not wait to fill.
        slowdown: longest time that an accepted request should take, as a multiple of the time that one takes alone;
            where one more would take longer, it gets status 429 at once.
        burst: requests beyond that which may wait their turn after a quiet time, so that a few at once are not refused;
            under lasting load none waits.
        most_requests: most accepted requests at a time, whatever they take.
        timeout_s: longest time from a request's headers to its answer, reading the body included; then status 408
            (body not there) or 503 (no score).
        retry_after_s: what refused clients are told to wait.
        headers_s: longest time for a request's headers to arrive; then the connection is closed.
        most_connections: open at a time; where there are more, the one that has waited longest for its headers is
            closed.
        largest_headers_kb: of a request, in KB.
        largest_body_mb: of a request, in MB.
        held_mb: bodies that are being read or judged, together, in MB; more get status 429.
        largest_video_pixels: of all frames of a video together.
        pixels_in_flight: of all videos that one replica decodes or holds decoded; others wait.
        allowed_hosts: names that the Host header may hold, without port; empty allows the names of this machine's
            loopback where the service listens there, and any name elsewhere.
        token_env: environment variable with the bearer token that requests must carry; unset or empty: none is asked.
        failures_in_a_row: batches that fail one after the other before a replica reports itself unhealthy, and is
            replaced.
    """

    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt = 1
    target_requests: float = Field(1.5, gt=0)
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    batch: PositiveInt = 16
    slowdown: float = Field(1.9, gt=1)
    burst: NonNegativeInt = 8
    most_requests: PositiveInt = 256
    timeout_s: float = Field(120.0, gt=0)
    retry_after_s: PositiveInt = 2
    headers_s: float = Field(10.0, gt=0)
    most_connections: PositiveInt = 1000
    largest_headers_kb: PositiveInt = 64
    largest_body_mb: float = Field(64.0, gt=0)
    held_mb: float = Field(256.0, gt=0)
    largest_video_pixels: PositiveInt = 50_000_000
    pixels_in_flight: PositiveInt = 50_000_000
    allowed_hosts: tuple[str, ...] = ()
    token_env: str = "ROBOALIGN_JUDGE_TOKEN"
    failures_in_a_row: PositiveInt = 3

    @model_validator(mode="after")
    def _check_bounds(self) -> ServingConfig:
        if self.min_replicas > self.max_replicas:
            raise ConfigError(
                f"min_replicas {self.min_replicas} is larger than max_replicas {self.max_replicas}",
                where="serving",
                remedy="change one of them",
            )
        for least, most in (("largest_body_mb", "held_mb"), ("largest_video_pixels", "pixels_in_flight")):
            if getattr(self, least) > getattr(self, most):
                raise ConfigError(
                    f"{least} {getattr(self, least):g} is larger than {most} {getattr(self, most):g}",
                    where="serving",
                    remedy="raise the second, or such a request could never be answered",
                )
        return self
