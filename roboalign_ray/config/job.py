"""The config tree of a job: one model per component, and the rules across components."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from roboalign_ray.config.agent import AgentConfig
from roboalign_ray.config.alignment import AlignmentConfig
from roboalign_ray.config.asynchrony import AsynchronyConfig
from roboalign_ray.config.base import ConfigError, FrozenConfig, Seed
from roboalign_ray.config.bench import BenchConfig
from roboalign_ray.config.cluster import ClusterConfig
from roboalign_ray.config.diffusion import DiffusionConfig
from roboalign_ray.config.episodes import EpisodesConfig, SimulationConfig
from roboalign_ray.config.inverse_dynamics import InverseDynamicsConfig
from roboalign_ray.config.judge import JudgeConfig
from roboalign_ray.config.paths import ShippedOrFolder, WorldModelOrFolder
from roboalign_ray.config.rewards import FidelityRewardConfig, RewardConfig
from roboalign_ray.config.scoring import ScoringConfig
from roboalign_ray.config.serving import ServingConfig
from roboalign_ray.config.teacher import TeacherConfig
from roboalign_ray.config.telemetry import TelemetryConfig
from roboalign_ray.config.tokenizer import TokenizerConfig, TokenizerTrainingConfig
from roboalign_ray.config.world_model import PretrainingConfig, RolloutConfig, WorldModelConfig
from roboalign_ray.foundation.failures import nearest_key
from roboalign_ray.plugins import installed, is_import_path

BUILT_IN_JUDGES = ("student", "vlm", "privileged")


class EvaluationConfig(FrozenConfig):
    """Evaluation: metrics and protocols.

    Attributes:
        episodes: number of held-out windows per protocol, of as many episodes where there are so many.
        history: number of real frames before the start frame that the model sees in the one-step protocol.
        one_step_temperature: sampling temperature of the one-step protocol; 0 takes the most likely token.
        horizon: number of frames of the long-horizon protocol.
        samples: number of rollouts per window.
        windows: refresh windows compared by the long-horizon protocol.
        lpips_network: LPIPS backbone.
        fvd: also compute the Fréchet video distance.
        roi_threshold: a pixel belongs to the region of interest if the real clip's temporal standard deviation there
            (mean over channels, [0, 1] scale) exceeds this.
        freeze_threshold: a frame counts as frozen if its mean absolute change is below this share of the real one's.
        bootstrap_resamples: resamples of the 95 % intervals.
        judged_windows, judged_samples: number of held-out windows of a rollout's length that the judges score, and of
            rollouts of each.
        judges: judges of these rollouts: "student" (the job's first one), "vlm" (the teacher of section `teacher`),
            "privileged" (measurement against the real continuation), and extensions by name (docs/extending.md).
    """

    episodes: PositiveInt = 16
    history: int = Field(3, ge=0)
    one_step_temperature: float = Field(0.0, ge=0)
    horizon: PositiveInt = 30
    samples: PositiveInt = 1
    windows: tuple[PositiveInt, ...] = (6, 10)
    lpips_network: Literal["alex", "vgg"] = "alex"
    roi_threshold: float = Field(0.05, ge=0)
    freeze_threshold: float = Field(0.1, ge=0)
    bootstrap_resamples: PositiveInt = 2000
    fvd: bool = False
    judged_windows: PositiveInt = 32
    judged_samples: PositiveInt = 2
    judges: tuple[str, ...] = Field(("student", "privileged"), min_length=1)

    @model_validator(mode="after")
    def _check_judges(self) -> EvaluationConfig:
        known = [*BUILT_IN_JUDGES, *installed("judges")]
        for name in self.judges:
            if name not in known and not is_import_path(name):
                raise ConfigError(
                    f"unknown judge '{name}'", where="evaluation.judges", remedy=nearest_key(name, known)
                )
        return self


class JobConfig(FrozenConfig):
    """All settings of a job, in one frozen tree.

    Attributes:
        name: name of the profile; the default run directory is output/name.
        seed: seed of every random stream of the job.
        output: folder of run directories.
        tokenizer_weights, world_model_weights: directories, or "shipped" for those inside the package;
            "shipped_diffusion" is the diffusion world model of two camera views there.
        world_model_kind: kind of world model that pre-training makes: "token" reads the sections `tokenizer`,
            `tokenizer_training`, `world_model` and `pretraining`, "diffusion" reads the section `diffusion`. What a
            finished world model is, its folder says.

    Relative paths, here and in the sections, are relative to the folder in which the command is started
    (`config.paths`).
    """

    name: str = "demo"
    seed: Seed = 0
    output: str = "runs"
    tokenizer_weights: ShippedOrFolder = "shipped"
    world_model_weights: WorldModelOrFolder = "shipped"
    world_model_kind: Literal["token", "diffusion"] = "token"
    episodes: EpisodesConfig = EpisodesConfig()
    simulation: SimulationConfig = SimulationConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TokenizerTrainingConfig = TokenizerTrainingConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    inverse_dynamics: InverseDynamicsConfig = InverseDynamicsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig(fidelity=FidelityRewardConfig(weight=1.0))
    alignment: AlignmentConfig = AlignmentConfig()
    asynchrony: AsynchronyConfig = AsynchronyConfig()
    judge: JudgeConfig = JudgeConfig()
    teacher: TeacherConfig = TeacherConfig()
    serving: ServingConfig = ServingConfig()
    scoring: ScoringConfig = ScoringConfig()
    bench: BenchConfig = BenchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    agent: AgentConfig = AgentConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def window_frames(self) -> int:
        """Frames of a window that the world model is pre-trained on."""
        return (self.diffusion if self.world_model_kind == "diffusion" else self.world_model).window_frames

    @model_validator(mode="after")
    def _check_views(self) -> JobConfig:
        named, wanted = len(self.episodes.views) or 1, self.diffusion.denoiser.views
        if self.world_model_kind == "diffusion" and named != wanted:
            raise ConfigError(
                f"the denoiser has {wanted} views, episodes.views names {named}",
                where="diffusion.denoiser.views",
                remedy="name as many views of the store in episodes.views",
            )
        return self

    @model_validator(mode="after")
    def _check_minibatch(self) -> JobConfig:
        alignment = self.alignment
        if alignment.prompts_per_update % alignment.minibatch_prompts:
            raise ConfigError(
                f"prompts_per_update {alignment.prompts_per_update} is not a multiple of "
                f"minibatch_prompts {alignment.minibatch_prompts}",
                where="alignment",
                remedy="make it one, so that every optimizer step sees whole groups",
            )
        return self

    @model_validator(mode="after")
    def _check_credit(self) -> JobConfig:
        if self.reward.needs_judge and self.alignment.credit == "frame":
            raise ConfigError(
                "credit by frame needs a reward that tells frames apart, and a student judges clips as a whole",
                where="alignment.credit",
                remedy="set it to clip, or reward.judged.weight to 0",
            )
        return self

    @model_validator(mode="after")
    def _check_branching(self) -> JobConfig:
        if self.reward.needs_judge and self.rollout.branching.most:
            raise ConfigError(
                "the samples of a branched group are single clips, and a student judges whole rollouts",
                where="rollout.branching.most",
                remedy="set it to 0, or reward.judged.weight to 0",
            )
        return self
