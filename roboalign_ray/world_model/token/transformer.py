"""The token transformer: a plain Hugging Face LLaMA, sized by WorldModelConfig and SequenceLayout.

Pre-training, alignment and the rollout engine share this model, and `AutoModelForCausalLM.from_pretrained` loads a
folder written here. Only the head is special: only dynamics tokens are ever predicted, so logits are computed only at
the predicted positions and over the dynamics range of the vocabulary; the full [length, vocabulary] matrix is never
computed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roboalign_ray.config import WorldModelConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.model_folders import check_model_folder
from roboalign_ray.world_model.token.layout import LAYOUT_FILE, SequenceLayout, check_same_layout, read_layout
from roboalign_ray.world_model.token.rollout import TokenSegment

MINIMUM_POSITIONS = 16_384


def build_model(config: WorldModelConfig, layout: SequenceLayout):
    """A freshly initialised `transformers.LlamaForCausalLM`, embeddings and head untied.

    Positions start at 0 in a segment. `max_position_embeddings` is generous (16,384 or 32 training windows): rotary
    embeddings have no table of fixed length, so the number only informs other tools.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from roboalign_ray.world_model.token.rotary import keep_rotary_exact

    llama = LlamaConfig(
        vocab_size=layout.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=max(MINIMUM_POSITIONS, layout.length(32 * config.window_frames)),
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=layout.bos,
        eos_token_id=layout.eos,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
    )
    model = LlamaForCausalLM(llama)
    keep_rotary_exact(model)
    return model


def slot_logits(model, ids: Tensor, layout: SequenceLayout, frames: int, *, given: int = 1) -> Tensor:
    """Logits of every predicted token over its slot's vocabulary.

    Args:
        model: a LLaMA from `build_model` or `load_pretrained`.
        ids: int64 [B, L], from `SequenceLayout.assemble`.
        frames: number of frames in `ids`, including given ones.
        given: number of frames at the start that are not predicted; 1 except after a refresh that keeps several.

    Returns:
        [B, (frames - given) * D, codes], in order of time; entry i predicts the i-th predicted token.
    """
    positions = layout.predicted(frames)[(given - 1) * layout.dynamics_tokens :]
    before = torch.as_tensor(positions - 1, device=ids.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.index_select(1, before)
    first, last = layout.dynamics_range
    return torch.nn.functional.linear(hidden, model.lm_head.weight[first:last])


def token_logprobs(model, ids: Tensor, layout: SequenceLayout, frames: int, *, given: int = 1) -> Tensor:
    """Log-probabilities float32 [B, (frames - given) * D] of the predicted tokens in `ids`."""
    logits = slot_logits(model, ids, layout, frames, given=given).float()
    targets = predicted_codes(ids, layout, frames, given=given)
    return logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)


def predicted_codes(ids: Tensor, layout: SequenceLayout, frames: int, *, given: int = 1) -> Tensor:
    """Codes int64 [B, (frames - given) * D] at the predicted positions of `ids`."""
    positions = layout.predicted(frames)[(given - 1) * layout.dynamics_tokens :]
    return ids.index_select(1, torch.as_tensor(positions, device=ids.device)) - layout.dynamics_range[0]


def segment_ids(segment: TokenSegment, layout: SequenceLayout) -> np.ndarray:
    """A rollout segment as training sequence: ids int64 [G, C + (m+n)*D + (m+n-1)*A]."""
    samples = len(segment.tokens)
    given = np.broadcast_to(segment.given, (samples, *segment.given.shape[1:]))
    context = np.broadcast_to(segment.context, (samples, segment.context.shape[-1]))
    actions = np.broadcast_to(segment.actions, (samples, *segment.actions.shape[-2:]))
    return layout.assemble(context, np.concatenate([given, segment.tokens], axis=1), actions)


def save_pretrained(model, layout: SequenceLayout, folder: str | Path) -> None:
    """Write config.json, model.safetensors and layout.json into `folder`."""
    folder = Path(folder)
    _quiet_transformers()
    model.save_pretrained(folder)
    (folder / LAYOUT_FILE).write_text(json.dumps(asdict(layout), indent=2) + "\n")


def load_pretrained(folder: str | Path, *, expected: SequenceLayout | None = None):
    """Load model and layout from a folder written by `save_pretrained`.

    Args:
        folder: holds config.json, model.safetensors and layout.json.
        expected: layout that tokenizer and actions need; None accepts any.

    Returns:
        (LlamaForCausalLM in float32 and evaluation mode, SequenceLayout).

    Raises:
        UserError: a file is missing or unreadable, weights and config disagree, or the layout is not `expected`.
    """
    folder = Path(folder)
    layout = read_layout(folder)
    if expected is not None:
        check_same_layout(layout, expected, folder)
    model = _read_model(folder)
    if model.config.vocab_size != layout.vocabulary:
        raise UserError(
            f"vocabulary {model.config.vocab_size} does not match {LAYOUT_FILE} ({layout.vocabulary})",
            where=str(folder),
            remedy="both files must come from the same save_pretrained",
        )
    return model, layout


def _read_model(folder: Path):
    from transformers import LlamaForCausalLM

    from roboalign_ray.world_model.token.rotary import keep_rotary_exact

    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            lacks = folder_fault(folder, f"holds no {name}")
            raise UserError(lacks, where=str(folder), remedy="give a world model folder")
    check_model_folder(folder, str(folder))
    _quiet_transformers()
    try:
        loaded: Any = LlamaForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:  # transformers and safetensors raise many exceptions for a damaged folder
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot be loaded ({reason})", where=str(folder)) from error
    model, info = loaded
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise UserError(f"weights and config.json disagree, first at '{wrong[0]}'", where=str(folder))
    keep_rotary_exact(model)
    return model.eval()


def _quiet_transformers() -> None:
    """Disable progress bars, because the files are small."""
    from transformers.utils import logging

    logging.disable_progress_bar()
