"""The alignment: its objective, and the settings that all objectives share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.alignment_diffusion import (
    ContrastiveConfig,
    DiffusionAlignmentConfig,
    FlowGrpoConfig,
    NftConfig,
)
from roboalign_ray.config.base import FrozenConfig, check_warm_up
from roboalign_ray.config.paths import Place


class AlignmentConfig(FrozenConfig):
    """Post-training. Defaults follow the public RLVR-World recipe where it states a number; the paper's own G, epsilon,
    beta and learning rate are unpublished.

    Attributes:
        objective: name of a built-in or installed objective, or module:Class.
        updates: policy updates (one rollout batch each).
        prompts_per_update: groups per update.
        group_size: G, rollouts per prompt.
        minibatch_prompts: groups per optimizer step.
        credit: "clip" gives all tokens of a sample the sample's advantage, as published; "frame" gives a frame's tokens
            the advantage of the rewards from this frame on, for rewards per frame. [ours]
        discount: with credit by frame, weight of a frame's reward relative to the frame before it. [ours]
        epochs: passes over each rollout batch.
        micro_batch_tokens: maximum of tokens of one forward and backward pass; changes memory, not the gradient.
        learning_rate: learning rate of AdamW, after the warm-up.
        warmup_updates: updates over which the learning rate rises linearly to its value; 0 starts at the value.
        weight_decay: weight decay of AdamW.
        clip_norm: maximum norm of the gradient; a longer gradient is scaled down to it.
        clip: epsilon of the clipped ratio.
        dual_clip: bound c on the loss for negative advantages; 0 disables it.
        kl_coefficient: beta, weight of the KL to the frozen pre-trained model.
        kl_estimator: "k3" = exp(d) - d - 1; "k1" = -d; "k2" = d^2/2, with d = log pi_ref - log pi.
        precision: data type of the learner's forward and backward passes.
        zero_stage: DeepSpeed ZeRO stage.
        evaluate_every: number of updates between evaluations on held-out prompts; the last update is always evaluated.
        checkpoint_every: number of updates between checkpoints; 0 writes one with every evaluation. The last update and
            an interrupted one always get one.
        checkpoints: URI of a folder that gets a copy of every checkpoint, such as "s3://bucket/run";
            empty for none.
        held_out_prompts: number of prompts of the before/after evaluation.
        held_out_samples: rollouts per held-out prompt, with the same seeds at every evaluation.
        diffusion: settings that the objectives of a diffusion world model share.
        nft: settings of the objective "diffusion_nft".
        contrastive: settings of the objective "softmax_contrastive".
        flow_grpo: settings of the objective "flow_grpo", which takes its weight of the KL from `kl_coefficient`.
    """

    objective: str = "grpo"
    updates: PositiveInt = 150
    prompts_per_update: PositiveInt = 128
    group_size: int = Field(16, ge=2)
    minibatch_prompts: PositiveInt = 32
    credit: Literal["clip", "frame"] = "clip"
    discount: float = Field(0.9, ge=0, le=1)
    epochs: PositiveInt = 1
    micro_batch_tokens: PositiveInt = 16_384
    learning_rate: float = Field(5e-5, gt=0)
    warmup_updates: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    clip: float = Field(0.2, gt=0)
    dual_clip: float = Field(3.0, ge=0)
    kl_coefficient: float = Field(1e-3, ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    precision: Literal["float32", "bfloat16"] = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    evaluate_every: PositiveInt = 10
    checkpoint_every: NonNegativeInt = 0
    checkpoints: Place = ""
    held_out_prompts: PositiveInt = 16
    held_out_samples: PositiveInt = 4
    diffusion: DiffusionAlignmentConfig = DiffusionAlignmentConfig()
    nft: NftConfig = NftConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    flow_grpo: FlowGrpoConfig = FlowGrpoConfig()

    @model_validator(mode="after")
    def _check_warm_up(self) -> AlignmentConfig:
        check_warm_up(self.warmup_updates, self.updates, "alignment.warmup_updates", unit="updates")
        return self
