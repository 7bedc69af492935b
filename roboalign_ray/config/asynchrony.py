"""Concurrent rollout, scoring and learning: the bound on staleness, and how the roles adapt to each other's speed.

All values are choices of this project: the papers that it follows publish synchronous runs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig
from roboalign_ray.config.weights import WeightsConfig


class OffPolicyConfig(FrozenConfig):
    """Correction for samples of older weights. Segments of the newest weights are never corrected.

    Attributes:
        correction: "none" clips the ratio to the policy that sampled; "decoupled" clips the ratio to the policy at the
            update's start and weights by that policy's ratio to the sampling one (arXiv 2505.24298);
            "truncated" weights log-probabilities by the bounded ratio, without clipping (arXiv 2506.13585).
        truncation: bound on the importance weights of tokens, at least 1.
    """

    correction: Literal["none", "decoupled", "truncated"] = "none"
    truncation: float = Field(2.0, ge=1)


class ElasticConfig(FrozenConfig):
    """Limits on the number of a role's workers while the job runs.

    Attributes:
        least, most: limits; 0 for both keeps the role's `workers` of the cluster section.
    """

    least: NonNegativeInt = 0
    most: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_order(self) -> ElasticConfig:
        if bool(self.least) != bool(self.most) or self.least > self.most:
            raise ConfigError(
                f"least {self.least} and most {self.most} are no range of workers",
                where="asynchrony.backpressure",
                remedy="give both, least not above most, or neither",
            )
        return self


class BackpressureConfig(FrozenConfig):
    """Slows rollouts down and resizes pools if another role cannot keep up.

    Attributes:
        adaptive: whether anything is adapted.
        every_s: seconds between observations.
        least: minimum of groups in flight; 0 takes one per rollout worker.
        low, high: watermarks. The number of groups in flight grows while both backlogs are below `low`, and shrinks
            once one is above `high`. The scorers' backlog counts full queues, the learner's counts finished batches.
        decrease: factor on the number of groups in flight if a backlog is too long.
        depth: maximum of groups per scorer, including the one in progress.
        patience: number of observations in a row that must agree before a pool changes.
        utilisation: share of time that a worker of an elastic pool should be busy.
        deadband: smaller relative changes of a pool are not made.
        rollout, scorer: limits of the pools.
    """

    adaptive: bool = True
    every_s: float = Field(5.0, gt=0)
    least: NonNegativeInt = 0
    low: float = Field(0.5, ge=0)
    high: float = Field(1.5, gt=0)
    decrease: float = Field(0.8, gt=0, lt=1)
    depth: PositiveInt = 2
    patience: PositiveInt = 3
    utilisation: float = Field(0.85, gt=0, le=1)
    deadband: float = Field(0.1, ge=0)
    rollout: ElasticConfig = ElasticConfig()
    scorer: ElasticConfig = ElasticConfig()

    @model_validator(mode="after")
    def _check_order(self) -> BackpressureConfig:
        if self.low >= self.high:
            raise ConfigError(
                f"low {self.low:g} must lie below high {self.high:g}",
                where="asynchrony.backpressure",
            )
        return self


class StageTimeConfig(FrozenConfig):
    """Time of one worker for one group, and its failure rate.

    Attributes:
        seconds: mean of the time.
        shape: shape of its distribution; "pareto" has the longest tail.
        variation: standard deviation divided by mean, for "lognormal" and "pareto".
        mean_time_to_failure_s: mean time to failure of one worker; 0 for no failures.
        restart_s: seconds until a lost worker is replaced.
    """

    seconds: float = Field(1.0, ge=0)
    shape: Literal["constant", "exponential", "lognormal", "pareto"] = "constant"
    variation: float = Field(1.0, gt=0)
    mean_time_to_failure_s: float = Field(0.0, ge=0)
    restart_s: float = Field(30.0, ge=0)


class WorkloadConfig(FrozenConfig):
    """Speeds that `roboalign simulate` assumes.

    Attributes:
        rollout, scorer: time of one group on one worker.
        learner: time of one group on one rank; the ranks divide an update's groups evenly.
        weights_s: seconds from the end of an update until rollouts can use its weights; the learner is idle meanwhile.
        segments: number of segments of a rollout, of equal length; each uses the newest weights at its beginning.
        provision_s: seconds until a requested worker of an elastic pool has started.
        flat_share: share of groups whose samples all get the same reward.
    """

    rollout: StageTimeConfig = StageTimeConfig(shape="lognormal")
    scorer: StageTimeConfig = StageTimeConfig(seconds=0.2)
    learner: StageTimeConfig = StageTimeConfig(seconds=0.2)
    weights_s: float = Field(0.5, ge=0)
    segments: PositiveInt = 2
    provision_s: float = Field(60.0, ge=0)
    flat_share: float = Field(0.0, ge=0, lt=1)


class LivenessConfig(FrozenConfig):
    """Criteria for a worker that hangs.

    Attributes:
        every_s: seconds between two heartbeats of a worker.
        silence_s: a worker that does not answer a heartbeat for this time counts as hung.
        stall_s: a worker that answers heartbeats but makes no progress in a call for this time counts as hung. Must be
            longer than the longest step between two signs of progress: a token of a rollout, a scored group, a
            micro-batch.
        grace_s: time limit for a running update to end when the job is interrupted.
    """

    every_s: float = Field(2.0, gt=0)
    silence_s: float = Field(30.0, gt=0)
    stall_s: float = Field(120.0, gt=0)
    grace_s: float = Field(4.0, ge=0)


class AsynchronyConfig(FrozenConfig):
    """The asynchronous loop.

    Attributes:
        staleness: eta, maximum of updates between the weights that generated a group's first segment and those it
            trains; 0 makes the roles take turns.
        stale: handling of groups that would become too old: with "wait", the learner waits for them; with "drop", it
            continues, and such groups are discarded and counted.
        overtaking: with "wait", whether groups may be trained before slower ones that began earlier, as far as the
            bound allows. If not, an update's groups do not depend on the order of completion.
        concurrency: maximum of groups in flight; 0 sets no limit besides the bound on staleness.
        groups_per_call: number of groups in a call of a rollout worker, which its engine runs as one batch; 0
            divides an update's groups evenly among the workers. Fewer groups wait less for the slowest of their batch.
        tries: number of failures in a row after which a prompt is set aside.
        flat_groups: handling of groups whose samples all have the same reward.
        resample_limit: maximum of flat groups replaced per update; further ones are kept.
        weights: transfer of weight versions from the learner to the other roles.
    """

    staleness: NonNegativeInt = 0
    stale: Literal["wait", "drop"] = "wait"
    overtaking: bool = False
    concurrency: NonNegativeInt = 0
    groups_per_call: NonNegativeInt = 0
    tries: PositiveInt = 3
    flat_groups: Literal["keep", "resample"] = "keep"
    resample_limit: PositiveInt = 64
    off_policy: OffPolicyConfig = OffPolicyConfig()
    weights: WeightsConfig = WeightsConfig()
    backpressure: BackpressureConfig = BackpressureConfig()
    liveness: LivenessConfig = LivenessConfig()
    workload: WorkloadConfig = WorkloadConfig()
