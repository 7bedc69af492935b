"""A teacher on transformers: any model of the image-text-to-text family with a processor for videos."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.foundation.failures import Failed, UserError, first_line
from roboalign_ray.foundation.storage.model_folders import needs_code, wants_code
from roboalign_ray.judge.protocol import (
    Judgement,
    JudgeRequest,
    judge_each,
    judgement_of,
)
from roboalign_ray.judge.teacher import constrained
from roboalign_ray.judge.teacher.frames import ShownVideo, shown_video, size_limits
from roboalign_ray.judge.teacher.model_sources import check_adapter, model_source, teacher_name
from roboalign_ray.judge.teacher.parsing import END_OF_THINKING
from roboalign_ray.judge.teacher.prompt import (
    CHATML_MARKS,
    answer_grammar,
    chatml,
    messages,
    prompt_text,
    template_opens_thinking,
)
from roboalign_ray.judge.teacher.prompt_contract import check_asking


class VideoPrompter:
    """A model's processor, configured to take frames unchanged.

    Args:
        source: model name or folder.
        config: frames, pixels and prompt.

    Attributes:
        processor, tokenizer: the objects of transformers.

    Raises:
        UserError: there is no such processor, or the model was trained with other prompt settings.
    """

    def __init__(self, source: str, config: TeacherConfig) -> None:
        from transformers import AutoProcessor

        self.config = config
        for folder in (source, *([config.adapter] if config.adapter else [])):
            check_asking(folder, config)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise _not_loaded(source, error) from error
        self.tokenizer: Any = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self._opens_thinking = template_opens_thinking(getattr(self.processor, "chat_template", None))
        if config.prompt.template == "chatml":
            _check_marks(source, self.tokenizer)
        video = self.processor.video_processor
        self.factor = int(video.patch_size) * int(video.merge_size)
        # Frames already have the configured size; the processor's default limits would resize them again.
        video.size = self.size_limits()
        if hasattr(video, "cap_pixels_per_frame"):
            video.cap_pixels_per_frame = False

    def size_limits(self) -> dict[str, int]:
        """The processor's size limits for this config."""
        return size_limits(self.config.frames, self.config.pixels, self.factor)

    def shown(self, request: JudgeRequest) -> ShownVideo:
        """The frames of a request that the model gets."""
        config = self.config
        return shown_video(
            request.frames, request.fps, count=config.frames, pixels=config.pixels, factor=self.factor
        )

    def text(self, instruction: str) -> str:
        """The prompt as one string, up to the beginning of the answer."""
        if self.config.prompt.template == "model":
            turns = messages(instruction, self.config)
            return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return chatml(prompt_text(instruction, self.config), opens_thinking=self._opens_thinking)

    def inputs(self, texts: Sequence[str], videos: Sequence[ShownVideo]) -> Any:
        """The inputs of a batch, padded on the left."""
        from transformers.video_utils import VideoMetadata

        return self.processor(
            text=list(texts),
            videos=[video.frames for video in videos],
            video_metadata=[VideoMetadata(**video.metadata()) for video in videos],
            do_sample_frames=False,
            padding=True,
            return_tensors="pt",
        )


def _check_marks(source: str, tokenizer: Any) -> None:
    """Check that a tokenizer has the special tokens of the chat format.

    Raises:
        UserError: one of them is missing.
    """
    known = tokenizer.get_vocab()
    missing = [mark for mark in CHATML_MARKS if mark not in known]
    if missing:
        raise UserError(
            f"'{source}' does not read Qwen's chat format ({missing[0]} is not one of its tokens)",
            where="teacher.prompt.template",
            remedy="set it to 'model' to render the template of the model's folder, if you trust that model",
        )


def load_model(source: str, precision: str) -> Any:
    """Load a model on the CPU, in evaluation mode.

    Raises:
        UserError: there is no model, or it is not of the image-text-to-text family.
    """
    from transformers import AutoModelForImageTextToText

    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=getattr(torch, precision), trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(source, error) from error
    return model.eval()


def with_adapter(model: Any, adapter: str) -> Any:
    """The model with a LoRA adapter's changes added to its weights.

    Raises:
        UserError: peft is not installed, or the adapter does not fit the model's layers.
    """
    peft = import_peft()
    try:
        return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the adapter does not fit this model ({first_line(error)})",
            where=adapter,
            remedy="set teacher.model to the model it was trained on",
        ) from error


def import_peft() -> Any:
    """Import peft, which only adapters need.

    Raises:
        UserError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "LoRA adapters need peft", where="teacher", remedy="install the 'teacher' extra"
        ) from error
    return peft


class TransformersTeacher:
    """A teacher that generates answers with transformers, on the GPU if there is one.

    Args:
        config: the teacher's config.

    Attributes:
        name: the teacher's name in labels.

    Raises:
        UserError: the model or its adapter cannot be loaded.
    """

    def __init__(self, config: TeacherConfig) -> None:
        source = model_source(config.model)
        if config.adapter:
            check_adapter(config.adapter, config.model)
        self.config, self.name = config, teacher_name(config.model, config.adapter)
        self.prompter = VideoPrompter(source, config)
        model = load_model(source, config.precision)
        if config.adapter:
            model = with_adapter(model, config.adapter)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self._grammar = self._compiled()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request, `config.batch` of them at a time."""
        return judge_each(requests, self._judged, batch=self.config.batch)

    @torch.inference_mode()
    def answers(self, requests: Sequence[JudgeRequest]) -> list[list[str]]:
        """Generate raw answers [B][draws]. The same requests give the same answers."""
        from transformers import LogitsProcessorList

        config, prompter = self.config, self.prompter
        held = [self._grammar.processor()] if self._grammar else []
        shown = [prompter.shown(request) for request in requests]
        texts = [prompter.text(request.instruction) for request in requests]
        inputs = prompter.inputs(texts, shown).to(self.device)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if config.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": 0,
            }
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_seed(config.seed, texts, shown))
            ids = self.model.generate(
                **inputs,
                **sampling,
                max_new_tokens=config.max_new_tokens,
                num_return_sequences=config.draws,
                logits_processor=LogitsProcessorList(held),
            )
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = prompter.tokenizer.batch_decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [texts[n * config.draws : (n + 1) * config.draws] for n in range(len(requests))]

    def _judged(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        return [judgement_of(texts) for texts in self.answers(requests)]

    def _compiled(self) -> constrained.AnswerGrammar | None:
        config, tokenizer = self.config, self.prompter.tokenizer
        if config.constrained is False or (config.constrained is None and not constrained.available()):
            return None
        width = self.model.get_output_embeddings().weight.shape[0]
        ends = tokenizer.convert_tokens_to_ids(END_OF_THINKING) if config.reasoning else None
        return constrained.AnswerGrammar(answer_grammar(config), tokenizer, width, ends)


def _seed(seed: int, texts: Sequence[str], shown: Sequence[ShownVideo]) -> int:
    digest = hashlib.sha256(str(seed).encode())
    for text, video in zip(texts, shown, strict=True):
        digest.update(text.encode())
        digest.update(video.frames.tobytes())
    return int.from_bytes(digest.digest()[:4], "big")


def _not_loaded(source: str, error: Exception) -> UserError:
    if wants_code(error):
        return needs_code(source, "teacher.model")
    return UserError(
        f"no model '{source}' to judge with ({first_line(error)})",
        where="teacher.model",
        remedy="give a name that transformers can fetch here, or a folder",
    )
