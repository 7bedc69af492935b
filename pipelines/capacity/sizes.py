"""The sizes of a job with a token world model: parameters per component, tokens and bytes per rollout.

Parameters are counted on the real modules, built on the meta device: no memory is allocated, and the counts always
match the training code. Tokens and bytes follow from the sequence layout and the refresh policy.
"""

from __future__ import annotations

from roboalign_ray.config import JobConfig, RefreshConfig
from roboalign_ray.world_model.refresh import RefreshPlan
from roboalign_ray.world_model.token.layout import SequenceLayout

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
_CODE_BYTES = _LOGPROB_BYTES = 4  # int32 codes and float32 log-probabilities, as in `TokenSegment`


def layout_of(config: JobConfig) -> SequenceLayout:
    """The job's sequence layout."""
    return SequenceLayout.from_config(config.tokenizer, config.world_model, config.episodes.action_bins)


def parameter_counts(config: JobConfig) -> dict[str, dict[str, int]]:
    """Parameters per part, for "tokenizer" and "world_model"; each has its "total"."""
    import torch

    from roboalign_ray.tokenizer.tokenizer import DualBranchTokenizer
    from roboalign_ray.world_model.token.transformer import build_model

    with torch.device("meta"):
        tokenizer = DualBranchTokenizer(config.tokenizer)
        llama = build_model(config.world_model, layout_of(config))
    parts = {"embeddings": llama.model.embed_tokens, "layers": llama.model.layers, "norm": llama.model.norm}
    return {
        "tokenizer": _count(dict(tokenizer.named_children())),
        "world_model": _count({**parts, "head": llama.lm_head}),
    }


def _count(parts) -> dict[str, int]:
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {**counts, "total": sum(counts.values())}


def segment_frames(refresh: RefreshConfig, horizon: int) -> list[tuple[int, int]]:
    """(given, generated) frames of each segment of a `horizon`-frame rollout."""
    plan, done, found = RefreshPlan.of(refresh), 0, []
    for frames in plan.segments(horizon):
        found.append((min(plan.recent, 1 + done), frames))
        done += frames
    return found


def peak_tokens(layout: SequenceLayout, refresh: RefreshConfig, horizon: int) -> int:
    """Tokens of the longest prompt for any frame of a `horizon`-frame rollout.

    "sinks" keeps the whole context until the first eviction, so its longest prompt is the one just before that.
    """
    if refresh.policy == "sinks":
        return layout.length(min(horizon, refresh.window))
    return max(layout.length(given - 1 + generated) for given, generated in segment_frames(refresh, horizon))


def token_sizes(config: JobConfig) -> dict[str, int]:
    """Tokens by slot, per rollout, per group and update, and the longest prompt with and without refresh."""
    layout, horizon, group = layout_of(config), config.rollout.horizon, config.alignment.group_size
    generated = horizon * layout.dynamics_tokens
    return {
        "vocabulary": layout.vocabulary,
        "context": layout.context_tokens,
        "dynamics_per_frame": layout.dynamics_tokens,
        "action_per_frame": layout.action_tokens,
        "training_window": layout.length(config.world_model.window_frames),
        "generated_per_rollout": generated,
        "generated_per_group": generated * group,
        "generated_per_update": generated * group * config.alignment.prompts_per_update,
        "peak_prompt": peak_tokens(layout, config.rollout.refresh, horizon),
        "peak_prompt_without_refresh": layout.length(horizon),
        "evaluation_peak_prompt": peak_tokens(layout, config.rollout.refresh, config.evaluation.horizon),
        "evaluation_peak_prompt_without_refresh": layout.length(config.evaluation.horizon),
    }


def byte_sizes(config: JobConfig) -> dict[str, int]:
    """Bytes of one rollout as sent between workers, as pixels, and of the key-value cache for its longest prompt.

    A rollout is sent as int32 codes and float32 log-probabilities; every segment after a refresh adds the codes that
    its samples no longer share. The cache holds shared tokens once per group, and the others once per sample.
    """
    layout, model, rollout = layout_of(config), config.world_model, config.rollout
    tokens, samples = token_sizes(config), config.alignment.group_size
    shared, own = _after_refresh(layout, rollout.refresh, rollout.horizon)
    refreshes = len(segment_frames(rollout.refresh, rollout.horizon)) - 1
    codes = (tokens["generated_per_rollout"] + refreshes * own) * _CODE_BYTES
    logprobs = tokens["generated_per_rollout"] * _LOGPROB_BYTES
    width = model.hidden // model.heads * model.kv_heads
    per_token = 2 * model.layers * width * _ELEMENT_BYTES[rollout.precision]
    peak = tokens["peak_prompt"]
    return {
        "tokens": codes,
        "logprobs": logprobs,
        "rollout": codes + logprobs,
        "pixels": rollout.horizon * config.tokenizer.height * config.tokenizer.width * 3,
        "update": (codes + logprobs) * samples * config.alignment.prompts_per_update,
        "cache_per_token": per_token,
        "cache_per_rollout": per_token * peak,
        "cache_per_group": per_token * (shared + samples * (peak - shared)),
    }


def _after_refresh(layout: SequenceLayout, refresh: RefreshConfig, horizon: int) -> tuple[int, int]:
    """The tokens that a group still shares in its largest segment, and the codes that a refresh adds per sample."""
    context, frame = layout.context_tokens, layout.dynamics_tokens
    if refresh.policy == "none" or horizon <= refresh.window:
        return layout.length(1), 0
    return {
        "swr": (0, context + frame),
        "token_window": (context, frame),
        "sinks": (refresh.sink_tokens, 0),
        "reference_recent": (context, min(refresh.recent, refresh.window) * frame),
    }[refresh.policy]
