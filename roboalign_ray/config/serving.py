"""The judge as a web service: number of replicas, and limits. All values are [ours].

The resources of a replica are those of its role: `cluster.scorer` for the student, `cluster.teacher` for the teacher.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig


class ServingConfig(FrozenConfig):
    """One served judge.

    Attributes:
        min_replicas, max_replicas: limits of autoscaling.
        target_requests: target of autoscaling: number of accepted requests per replica.
        upscale_delay_s, downscale_delay_s: time for which more or fewer replicas must be needed before a change.
        batch: maximum of videos judged together; a batch takes all waiting videos, and does not wait for more.
        slowdown: maximum time of an accepted request, as a multiple of the time of a single one; a request that would
            take longer gets status 429 at once.
        burst: number of further requests that may wait after a quiet time, so that a short burst is not refused; under
            permanent load, none waits.
        most_requests: maximum of accepted requests at a time, independent of their duration.
        timeout_s: maximum time from a request's headers to its answer, including reading the body; then status 408
            (body incomplete) or 503 (no score).
        retry_after_s: waiting time that is sent to refused clients.
        headers_s: maximum time for a request's headers to arrive; then the connection is closed.
        most_connections: maximum of open connections; beyond it, the connection that has waited longest for its headers
            is closed.
        largest_headers_kb: limit on a request's headers, in KB.
        largest_body_mb: limit on a request's body, in MB.
        held_mb: limit on all bodies that are being read or judged, in MB; further requests get status 429.
        largest_video_pixels: limit on the pixels of all frames of a video.
        pixels_in_flight: limit on the pixels of all videos that one replica is decoding or holds decoded; others wait.
        allowed_hosts: names allowed in the Host header, without port; if empty: the names of this machine's loopback if
            the service listens there, and else any name.
        token_env: environment variable with the bearer token that requests need; if it is unset or empty, none is
            needed.
        failures_in_a_row: number of batches that fail in a row before a replica reports itself unhealthy and is
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
