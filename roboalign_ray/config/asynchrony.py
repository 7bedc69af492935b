"""Rollout, scoring and learning at the same time: how stale a sample may be, and how the roles keep each other's pace.

All values are choices of this project: the papers that it follows publish synchronous runs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig
from roboalign_ray.config.weights import WeightsConfig


class OffPolicyConfig(FrozenConfig):
    """What makes up for samples of older weights. Segments of the newest weights are never touched.

    Attributes:
        correction: "none" clips the ratio to the policy that sampled; "decoupled" clips the ratio to the policy at the
            update's start and weighs by how much that one differs from the sampling one (arXiv 2505.24298);
            "truncated" weighs log-probabilities by the bounded ratio, without clipping (arXiv 2506.13585).
        truncation: bound on the importance weights of tokens, at least 1.
    """

    correction: Literal["none", "decoupled", "truncated"] = "none"
    truncation: float = Field(2.0, ge=1)


class ElasticConfig(FrozenConfig):
    """How many workers a role may have while the job runs.

    Attributes:
        least, most: bounds; 0 both keeps the role's `workers` of the cluster section.
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
    """How rollouts are slowed down and pools resized when another role cannot keep up.

    Attributes:
        adaptive: whether anything is changed at all.
        every_s: seconds between looks.
        least: groups in flight at least; 0 takes one per rollout worker.
        low, high: watermarks. More groups in flight while both backlogs lie below `low`, fewer once one lies above
            `high`. The scorers' backlog counts full queues, the learner's counts finished batches.
        decrease: factor on the groups in flight where a backlog is too long.
        depth: groups per scorer at most, the one it works on included.
        patience: looks in a row that must agree before a pool changes.
        utilisation: share of its time that a worker of an elastic pool should be busy.
        deadband: relative change of a pool below which it is left alone.
        rollout, scorer: bounds of the pools.
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
    """How long one worker takes for one group, and how often it is lost.

    Attributes:
        seconds: mean.
        shape: of the distribution around it; "pareto" has the longest tail.
        variation: standard deviation over mean of "lognormal" and "pareto".
        mean_time_to_failure_s: of one worker; 0 never loses one.
        restart_s: until a lost worker is back.
    """

    seconds: float = Field(1.0, ge=0)
    shape: Literal["constant", "exponential", "lognormal", "pareto"] = "constant"
    variation: float = Field(1.0, gt=0)
    mean_time_to_failure_s: float = Field(0.0, ge=0)
    restart_s: float = Field(30.0, ge=0)


class WorkloadConfig(FrozenConfig):
    """Speeds that `roboalign simulate` assumes.

    Attributes:
        rollout, scorer: of one group on one worker.
        learner: of one group on one rank; the ranks share an update's groups evenly.
        weights_s: from the end of an update until rollouts can have its weights; the learner rests meanwhile.
        segments: of a rollout, equally long; each is made with the newest weights at its beginning.
        provision_s: until a worker asked for by an elastic pool is there.
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
    """How a worker that hangs is told from one that works.

    Attributes:
        every_s: seconds between two heartbeats of a worker.
        silence_s: a worker whose heartbeat has not answered for so long counts as hung.
        stall_s: one that answers, but whose call has made no progress for so long, does too. Longer than the longest
            step between two signs of progress: a token of a rollout, a scored group, a micro-batch.
        grace_s: what an update under way is given to end when the job is interrupted.
    """

    every_s: float = Field(2.0, gt=0)
    silence_s: float = Field(30.0, gt=0)
    stall_s: float = Field(120.0, gt=0)
    grace_s: float = Field(4.0, ge=0)


class AsynchronyConfig(FrozenConfig):
    """The asynchronous loop.

    Attributes:
        staleness: eta, the most updates between the weights that made a group's first segment and those it trains;
            0 lets the roles take turns.
        stale: what to do about groups that would become too old: "wait" keeps the learner from going on without them,
            "drop" goes on, discards and counts them.
        overtaking: with "wait", whether groups may be trained before slower ones that began earlier, as far as the
            bound allows. Without it an update's groups do not depend on which finished first.
        concurrency: groups in flight at most; 0 leaves it to the bound on staleness.
        groups_per_call: groups that a rollout worker is handed at a time, and that its engine runs as one batch; 0
            divides an update's groups evenly among the workers. Fewer wait less for the slowest of their batch.
        tries: failures in a row after which a prompt is set aside.
        flat_groups: what to do with groups whose samples all have the same reward.
        resample_limit: flat groups replaced for one update at most; more than that are kept.
        weights: how a version travels from the learner to the other roles.
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
