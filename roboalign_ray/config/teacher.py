"""The VLM teacher: its model, its input and prompt, its backend, and its training.

RoboAlign-R1 (arXiv 2605.03821) publishes Qwen3-VL-8B-Thinking with LoRA, maximum likelihood on annotated scores, and
five samples at temperature 0.6. Frames, pixels, prompt, rank and rates are unpublished: those are [ours].
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from roboalign_ray.config.base import ConfigError, FrozenConfig, Seed, check_warm_up
from roboalign_ray.config.paths import ModelOrFolder, PlaceOrNone

Backend = Literal["transformers", "vllm", "openai"]


class TeacherPromptConfig(FrozenConfig):
    """The teacher's prompt. The wording is [ours]; levels and maxima come from the rubric.

    Attributes:
        opening: the first lines; None takes the sentences of `judge.teacher.prompt`, "" omits them.
        rubric: "levels" includes the meaning of every score, "maxima" only names and maxima of the dimensions; "none"
            is for a teacher that was trained on the rubric.
        closing: the last lines, before the description of the answer's form; None and "" as for `opening`.
        describe_answer: describe the expected JSON object.
        template: "chatml" writes the turns in the format of Qwen's models. "model" renders the template in the model's
            own folder, for models of another family. Such a template is a program that may run forever or fill the
            memory, so it is only for models that you trust.
    """

    opening: str | None = None
    rubric: Literal["levels", "maxima", "none"] = "levels"
    closing: str | None = None
    describe_answer: bool = True
    template: Literal["chatml", "model"] = "chatml"


class TeacherServerConfig(FrozenConfig):
    """An OpenAI-compatible server. [ours]

    Attributes:
        url: URL up to and including /v1.
        model: the model's name on the server; None takes `teacher.model`.
        api_key_env: environment variable with the key; if it is absent, no key is sent.
        video_as: "video" sends the frames as one video with their times (vLLM), "images" as single pictures (any server
            with vision).
        multiple: frame sides are multiples of this number: the served model's patch times its merge.
        send_limits: with "video", send with every request the setting that keeps the processor from resizing frames.
            vLLM applies it if started with --trust-request-mm-kwargs. Without it, the server's own limits apply, and a
            server that resizes frames shows the model other ones than the engine does.
        structured: how the answer's form is requested: "vllm" (structured_outputs, a grammar), "openai"
            (response_format, a JSON schema), or "none".
        deadline_s: limit for one video, all attempts together, in seconds.
        retries: number of further attempts after a failed one.
        backoff_s: wait before the first retry; doubles with each one.
        concurrency: number of videos requested at once.
    """

    url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    video_as: Literal["video", "images"] = "video"
    multiple: PositiveInt = 32
    send_limits: bool = True
    structured: Literal["vllm", "openai", "none"] = "vllm"
    deadline_s: float = Field(300.0, gt=0)
    retries: NonNegativeInt = 3
    backoff_s: float = Field(0.5, gt=0)
    concurrency: PositiveInt = 8


class TeacherEngineConfig(FrozenConfig):
    """vLLM's offline engine. [ours]

    Attributes:
        max_model_len: maximum of tokens of prompt and answer together, and never more than the model's own.
        memory_share: share of a GPU's memory that the engine may use.
        cache_gb: memory for keys and values on a CPU, GB.
        tensor_parallel: number of GPUs that share the model.
        eager: no graph capture or compilation: a faster start, and a slower run.
        lora_rank: maximum rank of an adapter.
    """

    max_model_len: PositiveInt = 32_768
    memory_share: float = Field(0.9, gt=0, le=1)
    cache_gb: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    eager: bool = False
    lora_rank: PositiveInt = 64


class TeacherLabellingConfig(FrozenConfig):
    """Labelling many videos with a pool of teachers. [ours]

    Attributes:
        batch: number of videos per call of a teacher.
        retries: number of further attempts at a video whose label failed; then it is set aside.
        part: number of labels per file.
    """

    batch: PositiveInt = 4
    retries: NonNegativeInt = 2
    part: PositiveInt = 64


class TeacherTrainingConfig(FrozenConfig):
    """Maximum likelihood on annotated scores [published]; every number is [ours].

    Attributes:
        method: "lora" trains an adapter, "full" all weights.
        start: "model" continues from `teacher.model`; "small" trains `teacher.small` from scratch.
        lora_rank, lora_alpha, lora_dropout: shape of the adapter.
        lora_targets: names of the linear layers of the language model that the adapter changes.
        vision_steps: for a small model from scratch, number of first optimizer steps in which only its vision encoder
            learns the scores, through a temporary head; 0 for none.
        vision_pairs_per_step: number of judged pairs per step of these.
        steps: number of optimizer steps.
        pairs_per_step: number of judged pairs per step, over all workers.
        micro_batch: number of pairs per forward pass.
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with linear warm-up, then cosine to 5 %.
            Without warmup_steps, the warm-up is a tenth of the steps, at most 50.
        score_weight: weight of a score's tokens in the loss, relative to 1 for all others of the answer.
        regression_weight: weight of an additional Huber loss: before each score in the answer, a temporary linear head
            must predict all six shares of the maxima from the language model's state. This trains the scores far sooner
            than the tokens do; 0 disables it.
        huber_delta: transition of that loss, and of the vision encoder's, to linear, as a share of a maximum.
        held_out_fraction: share of groups held out, selected by a hash of the group id.
        asked_else, spoiled: shares of pairs that get another task's instruction, and of faultless videos that are
            degraded anew, as in distillation; a pre-trained vision-language model needs neither.
        shift, light: augmentation of training videos: maximum shift as a share of their sides, and maximum relative
            change of brightness, contrast and saturation; see `judge.augmentation`.
        cache_gb: decoded pairs that each worker holds in memory, GB.
        zero_stage: DeepSpeed's ZeRO stage; every worker holds all weights.
        precision: data type of weights and activations.
        log_every, checkpoint_every: steps between rows of the metrics, and between checkpoints.
    """

    method: Literal["lora", "full"] = "lora"
    start: Literal["model", "small"] = "model"
    lora_rank: PositiveInt = 32
    lora_alpha: PositiveInt = 64
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    vision_steps: NonNegativeInt = 0
    vision_pairs_per_step: PositiveInt = 32
    steps: PositiveInt = 1000
    pairs_per_step: PositiveInt = 32
    micro_batch: PositiveInt = 4
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: NonNegativeInt | None = None
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    score_weight: float = Field(1.0, gt=0)
    regression_weight: float = Field(0.0, ge=0)
    huber_delta: float = Field(0.25, gt=0)
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    asked_else: float = Field(0.0, ge=0, lt=1)
    spoiled: float = Field(0.0, ge=0, le=1)
    shift: float = Field(0.0, ge=0, le=0.5)
    light: float = Field(0.0, ge=0, lt=1)
    cache_gb: float = Field(2.0, ge=0)
    zero_stage: Literal[0, 1, 2] = 1
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 200

    @model_validator(mode="after")
    def _check_method(self) -> TeacherTrainingConfig:
        if self.start == "small" and self.method == "lora":
            raise ConfigError(
                "an adapter on untrained weights learns nothing",
                where="teacher.training",
                remedy="set method to full, or start from a model",
            )
        if self.start == "model" and self.vision_steps:
            raise ConfigError(
                "a model that has seen pictures needs no steps of its vision encoder alone",
                where="teacher.training.vision_steps",
                remedy="set it to 0, or start to small",
            )
        return self

    @property
    def warmup(self) -> int:
        """Number of steps of linear warm-up."""
        return min(50, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _check_warm_up(self) -> TeacherTrainingConfig:
        check_warm_up(self.warmup_steps, self.steps, "teacher.training.warmup_steps")
        return self


class SmallTeacherConfig(FrozenConfig):
    """Shape of a small Qwen3-VL that is trained from scratch: about three million parameters. [ours]

    Attributes:
        vocabulary: number of tokens of the byte-pair encoding, including special ones.
        hidden, layers, heads, head_size, ffn: shape of the language model.
        vision_hidden, vision_layers, vision_heads, vision_ffn: shape of the vision encoder.
        patch: side of a patch, pixels; 2x2 patches in two frames are one token.
        positions: longest sequence, tokens.
    """

    vocabulary: PositiveInt = 1024
    hidden: PositiveInt = 192
    layers: PositiveInt = 4
    heads: PositiveInt = 3
    head_size: PositiveInt = 64
    ffn: PositiveInt = 512
    vision_hidden: PositiveInt = 128
    vision_layers: PositiveInt = 4
    vision_heads: PositiveInt = 4
    vision_ffn: PositiveInt = 384
    patch: PositiveInt = 8
    positions: PositiveInt = 4096

    @classmethod
    def tiny(cls, **changes: object) -> SmallTeacherConfig:
        """For tests: below one million parameters."""
        sizes: dict[str, object] = {
            "vocabulary": 640,
            "hidden": 64,
            "layers": 2,
            "heads": 2,
            "head_size": 32,
            "ffn": 128,
            "vision_hidden": 64,
            "vision_layers": 2,
            "vision_heads": 2,
            "vision_ffn": 128,
        }
        return cls.model_validate({**sizes, **changes})


class TeacherConfig(FrozenConfig):
    """The VLM teacher.

    Attributes:
        backend: "transformers", "vllm" (engine in an actor), or "openai" (a server).
        model: model name, folder, or "shipped" for the small one inside the package.
        adapter: folder of a LoRA adapter of that model.
        samples: number of independent answers per video [published]; 1 at temperature 0, where all would be equal.
        temperature: sampling temperature of the answers [published].
        top_p: share of probability that sampling is limited to. [ours]
        frames: maximum of frames shown, spread evenly over a video. [ours]
        pixels: approximate number of pixels per frame for the teacher. [ours]
        reasoning: whether reasoning in <think> tags precedes the answer.
        max_new_tokens: maximum of tokens of reasoning and answer. [ours]
        constrained: hold the answer to its grammar during generation; None does so if the backend can.
        score_step: scores are multiples of this. [ours]
        rationale_characters: maximum length of a constrained answer's rationale. [ours]
        batch: number of videos per forward pass of the transformers backend. [ours]
        precision: data type of the weights.
        seed: seed of sampling, weights and order.
    """

    backend: Backend = "transformers"
    model: ModelOrFolder = "Qwen/Qwen3-VL-8B-Thinking"
    adapter: PlaceOrNone = None
    samples: PositiveInt = 5
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    frames: int = Field(16, ge=2)
    pixels: PositiveInt = 256 * 320
    reasoning: bool = True
    max_new_tokens: PositiveInt = 4096
    constrained: bool | None = None
    score_step: float = Field(0.5, gt=0, le=1)
    rationale_characters: PositiveInt = 600
    batch: PositiveInt = 1
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: Seed = 0
    prompt: TeacherPromptConfig = TeacherPromptConfig()
    server: TeacherServerConfig = TeacherServerConfig()
    engine: TeacherEngineConfig = TeacherEngineConfig()
    labelling: TeacherLabellingConfig = TeacherLabellingConfig()
    training: TeacherTrainingConfig = TeacherTrainingConfig()
    small: SmallTeacherConfig = SmallTeacherConfig()

    @model_validator(mode="after")
    def _check_step(self) -> TeacherConfig:
        if abs(round(1 / self.score_step) * self.score_step - 1) > 1e-9:
            raise ConfigError(
                f"score_step {self.score_step:g} does not divide one point",
                where="teacher.score_step",
                remedy="use 1, 0.5, 0.25, 0.2 or 0.1",
            )
        return self

    @property
    def draws(self) -> int:
        """Answers drawn per video."""
        return self.samples if self.temperature > 0 else 1
