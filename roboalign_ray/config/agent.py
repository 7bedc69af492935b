"""Settings of closed-loop planning: the learned progress cost, and the loop of planning and acting."""

from __future__ import annotations

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, Depth, FrozenConfig, check_warm_up
from roboalign_ray.config.paths import PlaceOrNone


class ProgressConfig(FrozenConfig):
    """A network that reads task distances off single frames, and its training.

    Attributes:
        tasks: tasks of the store to train on; empty takes all that have labels.
        height, width: frame size of every view, pixels; multiples of 16.
        channels: of the four convolutions, each of stride 2.
        hidden: width of the layers behind them.
        hand_weight, object_weight: of the two distances in the loss.
        steps, frames_per_step: optimizer steps, and frames of each over all workers.
        learning_rate, warmup, weight_decay, clip_norm, ema_decay: of AdamW with cosine decay.
        noise, blur: augmentation, since predicted frames are less sharp than real ones: standard deviation of pixel
            noise in shares of the range, and the share of frames that are blurred.
        memory_gb: maximum for the frames of training, in memory at once; episodes are thinned evenly to fit.
        log_every, checkpoint_every: in steps.
    """

    tasks: tuple[str, ...] = ()
    height: PositiveInt = Field(64, multiple_of=16, le=1024)
    width: PositiveInt = Field(64, multiple_of=16, le=1024)
    channels: tuple[Depth, Depth, Depth, Depth] = (24, 48, 96, 128)
    hidden: PositiveInt = Field(192, le=8192)
    hand_weight: float = Field(1.0, gt=0)
    object_weight: float = Field(1.0, gt=0)
    steps: PositiveInt = 6000
    frames_per_step: PositiveInt = 128
    learning_rate: float = Field(1e-3, gt=0)
    warmup: NonNegativeInt = 100
    weight_decay: float = Field(0.02, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    noise: float = Field(0.02, ge=0)
    blur: float = Field(0.3, ge=0, le=1)
    memory_gb: float = Field(4.0, gt=0)
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 500

    @model_validator(mode="after")
    def _check_warm_up(self) -> ProgressConfig:
        check_warm_up(self.warmup, self.steps, "agent.progress.warmup")
        return self


class AgentSearchConfig(FrozenConfig):
    """How plans are searched for. The defaults suffice with a true cost; other keys are settings of `agent.planner`.

    Attributes:
        candidates, iterations: of a plan.
        knots: points in time at which a candidate's dimensions are given; one for the gripper holds it.
        straight: share of candidates that hold one action.
        elites: candidates that the next iteration is drawn from.
    """

    model_config = ConfigDict(extra="allow")

    candidates: PositiveInt = 32
    iterations: PositiveInt = 2
    knots: tuple[PositiveInt, ...] | None = (3, 3, 3, 1)
    straight: float = Field(0.25, ge=0, le=1)
    elites: PositiveInt = 5


class AgentConfig(FrozenConfig):
    """Planning in closed loop: plan, act for a few decisions, plan again.

    Attributes:
        progress: training of the learned cost.
        progress_weights: folder of the learned cost, as `roboalign agent train-cost` writes it.
        planner: name of the planner, or module:attribute.
        search: its settings.
        horizon: actions of a plan.
        replan: decisions until the next plan.
        decisions: maximum per episode.
        first_start: index of the first start state; a store with fewer starts per task has seen none from here on.
        history: real frames before the current one that the world model sees.
        samples: predictions per candidate that the cost is averaged over.
    """

    progress: ProgressConfig = ProgressConfig()
    progress_weights: PlaceOrNone = None
    planner: str = "cem"
    search: AgentSearchConfig = AgentSearchConfig()
    horizon: PositiveInt = 5
    replan: PositiveInt = 2
    decisions: PositiveInt = 20
    first_start: NonNegativeInt = 10_000
    history: NonNegativeInt = 3
    samples: PositiveInt = 1

    @model_validator(mode="after")
    def _check_replan(self) -> AgentConfig:
        if self.replan > self.horizon:
            raise ConfigError(
                f"{self.replan} decisions are executed of a plan of {self.horizon}",
                where="agent.replan",
                remedy="set agent.horizon at least as large",
            )
        return self
