"""The VLM teacher: which model judges, what it is shown and asked, how it is run, and how it is trained.

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
    """What the teacher is told beside the video. The wording is [ours]; levels and maxima come from the rubric.

    Attributes:
        opening: the first lines; None takes the sentences of `judge.teacher.prompt`, "" leaves them out.
        rubric: "levels" writes out what every score means, "maxima" names dimensions and maxima, "none" is for a
            teacher that has been trained on the rubric.
        closing: the last lines, before the description of the answer's form; None and "" as for the opening.
        describe_answer: say which JSON object is wanted.
        template: "chatml" writes the turns as Qwen's models are trained to read them. "model" renders the template in
            the model's own folder, for models of another family. That template is a program: it may never end, or
            fill the memory, so it is only for models that you trust.
    """

    opening: str | None = None
    rubric: Literal["levels", "maxima", "none"] = "levels"
    closing: str | None = None
    describe_answer: bool = True
    template: Literal["chatml", "model"] = "chatml"


class TeacherServerConfig(FrozenConfig):
    """An OpenAI-compatible server. [ours]

    Attributes:
        url: up to and including /v1.
        model: name that the server knows the model by; None takes `teacher.model`.
        api_key_env: environment variable that holds the key; an absent one means no key is needed.
        video_as: "video" sends the frames as one video with their times (vLLM), "images" as single pictures (any server
            with vision).
        multiple: frame sides are multiples of this: the served model's patch times its merge.
        send_limits: with "video", tell the processor with every request to leave frames at the size they come in. vLLM
            listens where it was started with --trust-request-mm-kwargs. Without, its own limits hold, and a server
            that changes the frames sees other ones than the engine does.
        structured: how the answer's form is asked for: "vllm" (structured_outputs, a grammar), "openai"
            (response_format, a JSON schema), or "none".
        deadline_s: for one video, all attempts together, in seconds.
        retries: further attempts after a failed one.
        backoff_s: wait before the first retry; doubles with each.
        concurrency: videos asked about at once.
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
        max_model_len: most tokens of prompt and answer together, and never more than the model's own.
        memory_share: share of a GPU's memory the engine may take.
        cache_gb: memory for keys and values on a CPU, GB.
        tensor_parallel: GPUs that share the model.
        eager: no graph capture or compilation: starts sooner, runs slower.
        lora_rank: largest rank of an adapter.
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
        batch: videos per call of a teacher.
        retries: further tries of a video whose label failed; then it is set aside.
        part: labels per file that is written.
    """

    batch: PositiveInt = 4
    retries: NonNegativeInt = 2
    part: PositiveInt = 64


class TeacherTrainingConfig(FrozenConfig):
    """Maximum likelihood on annotated scores [published]; every number is [ours].

    Attributes:
        method: "lora" trains an adapter, "full" all weights.
        start: "model" goes on from `teacher.model`; "small" makes `teacher.small` from scratch.
        lora_rank, lora_alpha, lora_dropout: of the adapter.
        lora_targets: names of the linear layers that get one, in the language model.
        vision_steps: of a small model from scratch, first so many optimizer steps in which its vision encoder alone
            learns the scores, through a head that is thrown away; 0 leaves it untrained.
        vision_pairs_per_step: judged pairs a step of those.
        steps: optimizer steps.
        pairs_per_step: judged pairs a step, over all workers.
        micro_batch: pairs per forward pass.
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW with linear warm-up, then cosine to 5 %.
            Without warmup_steps it takes a tenth of the steps, at most 50.
        score_weight: weight of a score's tokens in the loss, against 1 for all others of the answer.
        regression_weight: weight of a Huber loss beside it: wherever the answer is about to tell a score, a linear
            head, thrown away in the end, must read all six shares of the maxima from the language model's state. What a
            video is worth is learned from that far sooner than from tokens; 0 does without.
        huber_delta: share of a maximum where that loss, and that of the vision encoder alone, turns linear.
        held_out_fraction: share of groups held out, by a hash of the group id.
        asked_else, spoiled: shares of pairs that are asked for another task's sentence, and of faultless videos that
            are spoiled anew, as in distillation; a model that knows language and videos needs neither.
        shift, light: how far the whole model's training videos are moved at most, a share of their sides, and the
            largest relative change of their brightness, contrast and saturation; see `judge.augmentation`.
        cache_gb: decoded pairs that each worker keeps in memory, GB.
        zero_stage: DeepSpeed's; every worker holds all weights.
        precision: weights and activations.
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
        """Steps of linear warm-up."""
        return min(50, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @model_validator(mode="after")
    def _check_warm_up(self) -> TeacherTrainingConfig:
        check_warm_up(self.warmup_steps, self.steps, "teacher.training.warmup_steps")
        return self


class SmallTeacherConfig(FrozenConfig):
    """Shape of a small Qwen3-VL made from scratch: about three million parameters. [ours]

    Attributes:
        vocabulary: tokens of the byte-pair encoding, special ones included.
        hidden, layers, heads, head_size, ffn: language model.
        vision_hidden, vision_layers, vision_heads, vision_ffn: vision encoder.
        patch: pixels per side of a patch; 2x2 of them, in two frames, make one token.
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
        samples: independent answers per video [published]; at temperature 0 one is drawn, all would be equal.
        temperature: of the answers [published].
        top_p: nucleus. [ours]
        frames: most frames shown, spread evenly over a video. [ours]
        pixels: pixels of a frame that the teacher sees, about. [ours]
        reasoning: reasoning in <think> tags comes first.
        max_new_tokens: of reasoning and answer. [ours]
        constrained: hold the answer to its grammar while it is written; None does so where the backend can.
        score_step: scores are multiples of this. [ours]
        rationale_characters: longest rationale of a held answer. [ours]
        batch: videos per forward pass of the transformers backend. [ours]
        precision: of weights.
        seed: of sampling, weights and order.
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
