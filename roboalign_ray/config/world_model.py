"""The token world model, its pre-training, and its rollouts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, Depth, FrozenConfig, check_warm_up

RefreshPolicy = Literal["none", "swr", "token_window", "sinks", "reference_recent"]


class WorldModelConfig(FrozenConfig):
    """Shape of the LLaMA. Vocabulary and sequence length follow from tokenizer, actions and window.

    Attributes:
        hidden: width of the residual stream.
        layers: number of transformer blocks.
        heads, kv_heads: number of attention heads, and of key-value heads that they share.
        ffn: width inside a feed-forward block.
        rope_theta: base of the rotary position frequencies.
        action_dims: number of action tokens per frame, one per action dimension.
        window_frames: number of frames of a training window, including the start frame.
    """

    hidden: PositiveInt = 256
    layers: Depth = 6
    heads: PositiveInt = 8
    kv_heads: PositiveInt = 8
    ffn: PositiveInt = 768
    rope_theta: float = 10_000.0
    action_dims: PositiveInt = 4
    window_frames: int = Field(8, ge=2)

    @model_validator(mode="after")
    def _check_heads(self) -> WorldModelConfig:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"hidden {self.hidden}, heads {self.heads} and kv_heads {self.kv_heads} do not divide",
                where="world_model",
                remedy="hidden must be a multiple of heads, heads of kv_heads",
            )
        return self


class PretrainingConfig(FrozenConfig):
    """Next-token pre-training on dynamics tokens.

    Attributes:
        steps: number of optimizer steps.
        windows_per_step: number of windows over all workers.
        context_range: the context frame is drawn from this many frames before the window's start.
        learning_rate: learning rate of AdamW, at the end of the warm-up.
        schedule: after the warm-up, "constant" keeps the rate, like the public RLVR-World recipe; "cosine" lowers it
            to 10 %.
        warmup_steps: number of steps of linear warm-up; null takes a tenth of the steps, at most 5,000 [published].
        weight_decay: weight decay of AdamW.
        clip_norm: maximum norm of the gradient; a longer gradient is scaled down to it.
        precision: autocast type.
        ema_decay: decay of the average of the weights, which is the result; 0 takes the last weights.
        log_every, checkpoint_every: steps between rows of the metrics, and between checkpoints.
    """

    steps: PositiveInt = 2000
    windows_per_step: PositiveInt = 16
    context_range: PositiveInt = 15
    learning_rate: float = Field(5e-5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegativeInt | None = None
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    ema_decay: float = Field(0.0, ge=0, lt=1)
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 500

    @property
    def warmup(self) -> int:
        """Number of steps of linear warm-up."""
        return min(5000, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _check_warm_up(self) -> PretrainingConfig:
        check_warm_up(self.warmup_steps, self.steps, "pretraining.warmup_steps")
        return self


class RefreshConfig(FrozenConfig):
    """Context refresh in a long rollout.

    Attributes:
        policy: "none": plain autoregression. "swr": every `window` frames, decode, clamp and re-encode the last frame
            as context and start frame. "token_window": every `window` frames, keep the first context and restart from
            the last frame's tokens. "sinks": keep the first `sink_tokens` tokens and the last `window` frames.
            "reference_recent": keep the context frame and re-encode the last `recent` frames.
        window: number of frames between refreshes, or number of frames that "sinks" keeps.
        sink_tokens: number of first tokens that "sinks" keeps.
        recent: number of frames that "reference_recent" re-encodes at a refresh.
    """

    policy: RefreshPolicy = "swr"
    window: PositiveInt = 6
    sink_tokens: NonNegativeInt = 4
    recent: PositiveInt = 4


class SamplingConfig(FrozenConfig):
    """Sampling within a slot's vocabulary.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
    """

    temperature: float = Field(1.0, ge=0)
    top_k: NonNegativeInt = 0


class DiffusionSamplingConfig(FrozenConfig):
    """How a diffusion world model samples clips, and what makes the samples of a group differ.

    Attributes:
        steps: denoising steps of a clip; null takes those that the model was trained for.
        action_noise: standard deviation of one offset per sample, which is added to all actions that the network sees
            but not to those that are recorded. Its unit is half the range between the 1st and the 99th percentile of
            the model's action card. 0 is off. The clip's own noise hardly makes samples differ. [ours]
        history_noise: standard deviation of noise on the history, drawn per sample and clip, on the scale [-1, 1]; the
            network gets it as input. 0 is off.
        fresh_noise: level a of the noise that every denoising step but the last adds, s_t = a sqrt(t / (1 - t)) in the
            stochastic differential equation of Flow-GRPO, whose marginals are those of the plain sampler. Its public
            code takes 0.7. 0 is off; at most sqrt(2), where a step forgets as much noise as it can.
        rows_per_pass: samples that one forward pass denoises. Smaller batches are padded to it, so that a sample does
            not depend on the batch; results may differ in their last bit between two values. null takes 4 on a CPU and
            64 elsewhere.
    """

    steps: Annotated[int, Field(ge=1, le=64)] | None = None
    action_noise: float = Field(0.0, ge=0)
    history_noise: float = Field(0.0, ge=0)
    fresh_noise: float = Field(0.0, ge=0, le=1.4142)
    rows_per_pass: PositiveInt | None = None

    def without_exploration(self) -> DiffusionSamplingConfig:
        """How a model is measured: without what only makes the samples of a group differ."""
        return self.model_copy(update={"action_noise": 0.0, "history_noise": 0.0, "fresh_noise": 0.0})


class HorizonsConfig(FrozenConfig):
    """Distribution of the length of a training group's rollouts. Evaluations always use the longest length.

    Attributes:
        shape: "fixed": always the longest, `rollout.horizon`. "uniform": every length from `least` to the longest is
            equally likely. "long_tailed": the probability of T frames is proportional to T^-tail.
        least: minimum length, frames.
        tail: exponent; a larger exponent makes long rollouts rarer.
    """

    shape: Literal["fixed", "uniform", "long_tailed"] = "fixed"
    least: PositiveInt = 1
    tail: float = Field(2.0, ge=0)


class BranchingConfig(FrozenConfig):
    """Training groups whose samples continue a history that the model generated itself, as PersistWorld trains.

    A group is the last of T clips. The T - 1 clips before it are generated once, and shared by the group's samples.
    T is drawn evenly from 1 to a longest number that grows during training; its growth is [ours]. Evaluations never
    branch.

    Attributes:
        clip_frames: frames of a clip.
        first, most: longest T at the beginning, and at last; with a `most` of 0 all groups begin at real frames.
        groups_per_clip: training groups after which the longest T grows by one.
        winner: how the shared history is made: "sampled" is one sample; "best" makes a whole group of candidates of
            each clip and continues the one of the highest reward, which costs as many rollouts more.
    """

    clip_frames: PositiveInt = 1
    first: PositiveInt = 4
    most: NonNegativeInt = 0
    groups_per_clip: PositiveInt = 32
    winner: Literal["sampled", "best"] = "sampled"

    @property
    def chooses(self) -> bool:
        """Whether rollouts are scored while the history is made."""
        return self.most > 0 and self.winner == "best"

    def longest(self, group: int) -> int:
        """The longest T of training group number `group`, from 0."""
        return min(self.most, self.first + group // self.groups_per_clip)

    @model_validator(mode="after")
    def _check_growth(self) -> BranchingConfig:
        if 0 < self.most < self.first:
            raise ConfigError(
                f"the longest history begins at {self.first} clips and may not pass {self.most}",
                where="rollout.branching.first",
                remedy="set it to at most most",
            )
        return self


class RolloutConfig(FrozenConfig):
    """Rollouts: start, length, refresh and sampling.

    A token world model samples as `sampling` says, a diffusion world model as `diffusion` says.

    Attributes:
        horizon: maximum length of a rollout, frames.
        completing: share of prompts in which the task is completed within the longest horizon, if the store has this
            information; other prompts begin anywhere, mostly after a scripted expert has completed the task. [ours]
        branching: training groups that continue a self-generated history; null begins all groups at real frames.
        precision: data type of the rollout engine's computation.
    """

    horizon: PositiveInt = 12
    horizons: HorizonsConfig = HorizonsConfig()
    branching: BranchingConfig = BranchingConfig()
    completing: float = Field(0.75, ge=0, le=1)
    refresh: RefreshConfig = RefreshConfig()
    sampling: SamplingConfig = SamplingConfig()
    diffusion: DiffusionSamplingConfig = DiffusionSamplingConfig()
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check_horizons(self) -> RolloutConfig:
        if self.horizons.shape != "fixed" and self.horizons.least > self.horizon:
            raise ConfigError(
                f"the shortest rollout, {self.horizons.least} frames, is longer than the longest, {self.horizon}",
                where="rollout.horizons.least",
            )
        return self

    @model_validator(mode="after")
    def _check_branching(self) -> RolloutConfig:
        if not self.branching.most:
            return self
        if self.horizons.shape != "fixed":
            raise ConfigError(
                "draws the length of rollouts, and so does rollout.branching",
                where="rollout.horizons.shape",
                remedy="set it to fixed, or rollout.branching.most to 0",
            )
        frames = self.branching.most * self.branching.clip_frames
        if frames > self.horizon:
            raise ConfigError(
                f"{self.branching.most} clips of {self.branching.clip_frames} frames are longer than the longest "
                f"rollout, {self.horizon} frames",
                where="rollout.branching.most",
                remedy="set fewer, or a larger rollout.horizon",
            )
        return self
