"""vLLM's offline engine as a teacher: same prompts, frames and parsing as all other backends.

Structured outputs hold answers to their grammar. They begin after the reasoning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from roboalign_ray.config import TeacherConfig
from roboalign_ray.foundation.failures import Failed, UserError, first_line
from roboalign_ray.foundation.torchvision_guard import guard_children
from roboalign_ray.judge.protocol import (
    Judgement,
    JudgeRequest,
    judge_each,
    judgement_of,
)
from roboalign_ray.judge.teacher.model_sources import check_adapter, model_source, teacher_name
from roboalign_ray.judge.teacher.prompt import answer_grammar
from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter

# Reasoning ends at </think>, whether the template or the model writes the opening tag.
_REASONING_PARSER = "deepseek_r1"

# The engine already runs in the actor's own process; on a CPU, a second process costs most of a minute.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
_CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_CHECK = "Value error, "  # prefix of pydantic's messages of model checks


class EngineTeacher:
    """Generates answers with vLLM; all videos of a call share the engine's batches.

    Args:
        config: the teacher's config.

    Attributes:
        name: name of the teacher in labels.

    Raises:
        UserError: vLLM is not installed, or the model or its adapter cannot be loaded.
    """

    def __init__(self, config: TeacherConfig) -> None:
        source = model_source(config.model)
        if config.adapter:
            check_adapter(config.adapter, config.model)
        self.config, self.name = config, teacher_name(config.model, config.adapter)
        self.prompter = VideoPrompter(source, config)
        self._engine = _engine(source, config, self.prompter.size_limits())

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        """One outcome per request. If the engine refuses a batch, its requests are judged one by one."""
        return judge_each(requests, self._judged)

    def answers(self, requests: Sequence[JudgeRequest]) -> list[list[str]]:
        """Raw answers [B][samples]."""
        if not requests:
            return []
        prompts = []
        for request in requests:
            shown = self.prompter.shown(request)
            video = (shown.frames, shown.metadata() | {"do_sample_frames": False})
            text = self.prompter.text(request.instruction)
            prompts.append({"prompt": text, "multi_modal_data": {"video": [video]}})
        outputs = self._engine.generate(
            prompts, self._sampling(), lora_request=self._adapter(), use_tqdm=False
        )
        return [[answer.text for answer in output.outputs] for output in outputs]

    def _judged(self, requests: Sequence[JudgeRequest]) -> list[Judgement | Failed]:
        return [judgement_of(texts) for texts in self.answers(requests)]

    def _sampling(self) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        config = self.config
        held = config.constrained is not False
        return SamplingParams(
            n=config.draws,
            temperature=config.temperature,
            top_p=config.top_p if config.temperature > 0 else 1.0,
            max_tokens=config.max_new_tokens,
            seed=config.seed,
            structured_outputs=StructuredOutputsParams(grammar=answer_grammar(config)) if held else None,
        )

    def _adapter(self) -> Any:
        if not self.config.adapter:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self.config.adapter)


def _engine(source: str, config: TeacherConfig, limits: dict[str, int]) -> Any:
    import torch

    settings, device = config.engine, {} if torch.cuda.is_available() else _CPU_ENVIRONMENT
    for name, value in (_ENVIRONMENT | device).items():
        os.environ.setdefault(name, value)
    guard_children()
    if device:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cache_gb))
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be used here ({error})",
            where="teacher.backend",
            remedy="pip install 'roboalign-ray[teacher]' on every node, or set it to transformers",
        ) from error
    try:
        return LLM(
            model=source,
            trust_remote_code=False,
            load_format="safetensors",
            dtype=config.precision,
            max_model_len=min(settings.max_model_len, _positions(source)),
            gpu_memory_utilization=settings.memory_share,
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend="uni" if settings.tensor_parallel == 1 else None,
            enforce_eager=settings.eager,
            seed=config.seed,
            limit_mm_per_prompt={"video": 1, "image": 0},
            mm_device_do_normalize=False,  # otherwise it would apply the image processor's numbers to videos
            mm_processor_kwargs={"size": limits, "do_sample_frames": False},
            structured_outputs_config=_structured(config),
            **({"enable_lora": True, "max_lora_rank": settings.lora_rank} if config.adapter else {}),
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"vLLM cannot load '{source}' ({_reason(error)})",
            where="teacher.model",
            remedy="see teacher.engine for its limits",
        ) from error


def _reason(error: Exception) -> str:
    """The cause in one line: checks of vLLM's settings give it below a headline."""
    causes = [line.strip() for line in str(error).splitlines() if line.strip().startswith(_CHECK)]
    return causes[0].removeprefix(_CHECK) if causes else first_line(error)


def _structured(config: TeacherConfig) -> dict[str, Any]:
    parser = _REASONING_PARSER if config.reasoning else ""
    return {"backend": "xgrammar", "reasoning_parser": parser}


def _positions(source: str) -> int:
    """Longest sequence that the model supports."""
    from transformers import AutoConfig

    return int(
        AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config().max_position_embeddings
    )
