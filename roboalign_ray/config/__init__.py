"""One frozen model per component, composed into one tree. Imports neither torch nor ray."""

from roboalign_ray.config.agent import AgentConfig, ProgressConfig
from roboalign_ray.config.alignment import AlignmentConfig
from roboalign_ray.config.base import ConfigError, FrozenConfig
from roboalign_ray.config.cluster import ClusterConfig, RoleConfig
from roboalign_ray.config.diffusion import (
    DenoiserConfig,
    DiffusionConfig,
    DiffusionTrainingConfig,
    NoiseConfig,
)
from roboalign_ray.config.episodes import EpisodesConfig, SimulationConfig
from roboalign_ray.config.job import EvaluationConfig, JobConfig
from roboalign_ray.config.judge import (
    DistillationConfig,
    GateConfig,
    JudgeConfig,
    RelabelConfig,
    StudentConfig,
)
from roboalign_ray.config.rewards import FidelityRewardConfig, JudgedRewardConfig, RewardConfig
from roboalign_ray.config.scoring import ScoringConfig
from roboalign_ray.config.serving import ServingConfig
from roboalign_ray.config.teacher import SmallTeacherConfig, TeacherConfig, TeacherTrainingConfig
from roboalign_ray.config.telemetry import TelemetryConfig
from roboalign_ray.config.tokenizer import TokenizerConfig, TokenizerTrainingConfig
from roboalign_ray.config.world_model import (
    DiffusionSamplingConfig,
    HorizonsConfig,
    PretrainingConfig,
    RefreshConfig,
    RolloutConfig,
    SamplingConfig,
    WorldModelConfig,
)

__all__ = [
    "AgentConfig",
    "AlignmentConfig",
    "ClusterConfig",
    "ConfigError",
    "DenoiserConfig",
    "DiffusionConfig",
    "DiffusionSamplingConfig",
    "DiffusionTrainingConfig",
    "DistillationConfig",
    "EpisodesConfig",
    "EvaluationConfig",
    "FidelityRewardConfig",
    "FrozenConfig",
    "GateConfig",
    "HorizonsConfig",
    "JobConfig",
    "JudgeConfig",
    "JudgedRewardConfig",
    "NoiseConfig",
    "PretrainingConfig",
    "ProgressConfig",
    "RefreshConfig",
    "RelabelConfig",
    "RewardConfig",
    "RoleConfig",
    "RolloutConfig",
    "SamplingConfig",
    "ScoringConfig",
    "ServingConfig",
    "SimulationConfig",
    "SmallTeacherConfig",
    "StudentConfig",
    "TeacherConfig",
    "TeacherTrainingConfig",
    "TelemetryConfig",
    "TokenizerConfig",
    "TokenizerTrainingConfig",
    "WorldModelConfig",
]
