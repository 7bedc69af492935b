"""A small Qwen3-VL from scratch: the large teacher's architecture, processors and chat format, in a few megabytes.

sentences of rubric and instructions ──► byte-pair encoding ─┐
SmallTeacherConfig ──► Qwen3VLForConditionalGeneration ──────┼──► folder that transformers and vLLM load
processors, chat template ───────────────────────────────────┘
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign_ray.config.teacher import SmallTeacherConfig, TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.rubric import DIMENSIONS
from roboalign_ray.judge.teacher.parsing import END_OF_THINKING, THINK
from roboalign_ray.judge.teacher.prompt import prompt_text, steps, target_answer

END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
_SPECIAL = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TAGS = (THINK, END_OF_THINKING)  # one token each, but part of the text, since parsers must see them
_MERGE, _PAIR = 2, 2  # patches per side, and frames, that are merged into one token
_GRID = 32  # side length of the learned position table; other grids are interpolated
_EXAMPLES = 64  # answers per instruction in the tokenizer's training text

# The format that Qwen models are trained on, without tools and history of reasoning.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type in ('video', 'video_url') %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part.type in ('image', 'image_url') %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_small_teacher(config: TeacherConfig, instructions: Iterable[str], folder: Path) -> None:
    """Write an untrained small Qwen3-VL; its weights depend only on the seed.

    Args:
        config: its `small` section gives the shape; the prompt and the score steps give the tokenizer's training text.
        instructions: sentences for the tokenizer's training; others can be encoded too.
        folder: folder for model, tokenizer, processors and chat template.

    Raises:
        UserError: the vocabulary is too small to hold all bytes.
    """
    tokenizer = _tokenizer(config, sorted(set(instructions)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _model(config.small, tokenizer)
    model.save_pretrained(folder)
    processor = _processor(config.small, tokenizer)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(config: TeacherConfig, instructions: list[str]) -> Any:
    """A byte-level tokenizer in Qwen's format, trained on prompts and answers."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    size = config.small.vocabulary - len(_SPECIAL) - len(_TAGS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size < len(alphabet):
        raise UserError(
            f"{config.small.vocabulary} tokens cannot hold the {len(alphabet)} bytes and {len(_SPECIAL)} special ones",
            where="teacher.small.vocabulary",
            remedy="give at least 320",
        )

    bare = Qwen2Tokenizer(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[])
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learned = bare.backend_tokenizer
    learned.train_from_iterator(_sentences(config, instructions), trainer)
    tokenizer_model = json.loads(learned.to_str())["model"]
    vocabulary = {
        token: n for token, n in tokenizer_model["vocab"].items() if token not in (*_SPECIAL, *_TAGS)
    }
    merges: Any = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" "))
        for pair in tokenizer_model["merges"]
    ]
    tokenizer = Qwen2Tokenizer(
        vocab={token: n for n, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))},
        merges=merges,
        unk_token=END_OF_TEXT,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[token for token in _SPECIAL if token not in (END_OF_TEXT, END_OF_TURN)],
        model_max_length=config.small.positions,
    )
    tokenizer.add_tokens(list(_TAGS))
    return tokenizer


def _sentences(config: TeacherConfig, instructions: list[str]) -> Iterator[str]:

    generator = np.random.default_rng(config.seed)
    choices = [steps(dimension, config.score_step) for dimension in DIMENSIONS]
    for instruction in instructions or ["move the object"]:
        yield prompt_text(instruction, config)
        for _ in range(_EXAMPLES):
            yield target_answer(np.array([generator.choice(allowed) for allowed in choices]), config)


def _model(sizes: SmallTeacherConfig, tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    half = sizes.head_size // 2
    sections = [
        half - 2 * (half // 3),
        half // 3,
        half // 3,
    ]  # sections of the rotary embedding: time, height, width
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "head_dim": sizes.head_size,
        "max_position_embeddings": sizes.positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": ids(END_OF_TURN),
        "pad_token_id": ids(END_OF_TEXT),
    }
    vision = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_ffn,
        "num_heads": sizes.vision_heads,
        "patch_size": sizes.patch,
        "spatial_merge_size": _MERGE,
        "temporal_patch_size": _PAIR,
        "out_hidden_size": sizes.hidden,
        "num_position_embeddings": _GRID**2,
        "deepstack_visual_indexes": [sizes.vision_layers // 2],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model: Any = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids(END_OF_TURN)
    model.generation_config.pad_token_id = ids(END_OF_TEXT)
    return model.to(torch.bfloat16)


def _processor(sizes: SmallTeacherConfig, tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    side = sizes.patch * _MERGE
    # One video takes at most half of the positions; the rest is for question and answer.
    limits = {
        "shortest_edge": side * side * _PAIR,
        "longest_edge": sizes.positions // 2 * side * side * _PAIR,
    }
    grid: dict[str, Any] = {"patch_size": sizes.patch, "merge_size": _MERGE, "temporal_patch_size": _PAIR}
    # The values of Qwen3-VL, for both processors: vLLM normalises videos with the image processor's values.
    grid |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    images = Qwen2VLImageProcessor(size={**limits, "longest_edge": limits["longest_edge"] // _PAIR}, **grid)
    videos = Qwen3VLVideoProcessor(size=limits, do_sample_frames=False, **grid)
    return Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)
