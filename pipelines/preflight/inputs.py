"""Small checks of what a job begins with: its folder, episode store, weights and judges. Each raises what it finds.

A check reads names, sizes, headers and figures, never video and never whole weights: all of them together take a second
or two. `preflight` says which job makes which of them. A rule that needs no file belongs into `roboalign_ray.config`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from roboalign_ray.alignment.objectives.registry import build_objective
from roboalign_ray.config import JobConfig, SimulationConfig, TokenizerConfig
from roboalign_ray.config.job import BUILT_IN_JUDGES
from roboalign_ray.config.loading import profile_names
from roboalign_ray.config.paths import SHIPPED_STORES, absolute_path, with_absolute_paths
from roboalign_ray.episodes import store as stores
from roboalign_ray.episodes.action_card import ActionCard
from roboalign_ray.episodes.store import EpisodeStore, open_store
from roboalign_ray.episodes.windows import WindowPlan, WindowSpec, long_enough
from roboalign_ray.foundation.failures import HostError, UserError, raise_if_host
from roboalign_ray.foundation.storage.readers import read_object
from roboalign_ray.foundation.weight_sync.files import check_weights_file
from roboalign_ray.judge.data.pairs import open_pairs
from roboalign_ray.judge.registry import JUDGES
from roboalign_ray.pipelines.cluster.weight_folders import (
    replay_folder,
    student_folder,
    tokenizer_folder,
    world_model_folder,
)
from roboalign_ray.pipelines.preflight.actions import compare_actions, store_card
from roboalign_ray.pipelines.train.stages import Stage, StageName, stage_of, stages_of
from roboalign_ray.pipelines.train.train_job import check_shares
from roboalign_ray.world_model import registry
from roboalign_ray.world_model.protocol import ModelCard
from roboalign_ray.world_model.refresh import check_clips, check_refresh

TEACHER_EXTRA = "pip install 'roboalign-ray[teacher]'"


@dataclass(frozen=True)
class Preflight:
    """A job that is about to start.

    Attributes:
        kind: of the job, as in `preflight.CHECKS`.
        config: the job's; its paths become absolute.
        out: run directory; None where nothing is written.
        model: world model to be measured; None takes the configured one.
        stages: of pre-training; () takes all of the world model.
        rollouts: whether a bench rolls the world model out.
        notes: what the checks found that stops nothing, a line each.
    """

    kind: str
    config: JobConfig
    out: Path | None = None
    model: Path | None = None
    stages: tuple[StageName, ...] = ()
    rollouts: bool = True
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Workers run in other folders, and a caller in Python may name relative paths.
        object.__setattr__(self, "config", with_absolute_paths(self.config))

    @cached_property
    def store(self) -> EpisodeStore:
        """The episode store's index."""
        store, simulation = self.config.episodes.store, self.config.simulation
        try:
            return open_store(store)
        except UserError as error:
            if simulation == SimulationConfig() or Path(store).exists() or store in SHIPPED_STORES:
                raise
            # A profile that describes a simulation needs a store that is to be simulated.
            profile = self.config.name if self.config.name in profile_names() else "PROFILE"
            remedy = f"make one with: roboalign episodes generate {store} --profile {profile}"
            raise UserError(error.what, where=error.where, remedy=remedy) from None

    @cached_property
    def store_card(self) -> ActionCard:
        """What the store's actions mean as the job reads them."""
        return store_card(self.store, self.config.episodes)

    @cached_property
    def world_model(self) -> Path:
        """Folder of the world model."""
        return self.model or world_model_folder(self.config)

    @cached_property
    def tokenizer(self) -> TokenizerConfig:
        """Shape of the tokenizer that the weights are of."""
        from roboalign_ray.tokenizer.tokenizer import read_config

        return read_config(tokenizer_folder(self.config))

    @cached_property
    def card(self) -> ModelCard:
        """What the world model is."""
        return registry.check_world_model(self.world_model, tokenizer=tokenizer_folder(self.config))


# --- folders -----------------------------------------------------------------------------------------------------


def check_out(job: Preflight) -> None:
    """The run directory can be made and written, and is no place that the job reads from."""
    if job.out is None:
        return
    out = absolute_path(job.out, "--out")
    try:
        nearest = next(path for path in (out, *out.parents) if path.exists() or path.is_symlink())
    except OSError as error:  # too long a name, for one
        raise_if_host(error, where=str(out))
        raise UserError(
            f"cannot be a folder ({error.strerror})", where="--out", remedy="choose another"
        ) from None
    if not nearest.is_dir():
        raise UserError("is a file, not a folder", where=str(nearest), remedy="choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise HostError(
            "cannot be written", where=str(nearest), remedy="choose another --out, or allow access"
        )
    for read in _folders_read(job):
        if out.resolve().is_relative_to(read.resolve()):
            raise UserError("the job reads from this folder", where=str(out), remedy="choose another --out")


def _folders_read(job: Preflight) -> Iterable[Path]:
    named = (job.config.episodes.store, job.config.judge.weights, job.config.judge.replay)
    return (Path(folder) for folder in named if folder not in SHIPPED_STORES)


# --- episodes ----------------------------------------------------------------------------------------------------


def check_store(job: Preflight) -> None:
    """There is an episode store that this version reads."""
    _ = job.store


def check_view(job: Preflight) -> None:
    """The views that the job names are in the store."""
    episodes, views = job.config.episodes, _views_in(job.store)
    named = [("episodes.view", episodes.view)] if episodes.view is not None else []
    for where, view in (*named, *(("episodes.views", view) for view in episodes.views)):
        if views and view not in views:
            raise UserError(
                f"the store has no view '{view}'", where=where, remedy=f"it has {', '.join(sorted(views))}"
            )


def check_action_kinds(job: Preflight) -> None:
    """All actions have the same number of dimensions, each of a kind that is known where frames are skipped."""
    if len(dims := _action_dims(job.store)) > 1:
        found = " and ".join(map(str, dims))
        raise UserError(
            "episodes differ in their number of action dimensions",
            where=str(job.store.path),
            remedy=f"it holds actions of {found} dimensions: make one store for each",
        )
    stores.check_action_kinds(job.store, job.config.episodes.frame_stride)


def check_training_windows(job: Preflight) -> None:
    """Every worker of every stage finds a training episode that holds a window, and its measurement a held-out one."""
    config, workers = job.config, job.config.cluster.trainer.workers
    for stage in _stages(job):
        check_shares(stage.windows_per_step(config), "windows", workers, where="windows_per_step")
        spec = WindowSpec(stage.window_frames(config), stride=config.episodes.frame_stride)
        fraction = config.episodes.held_out_fraction
        WindowPlan(job.store, spec, seed=0, held_out_fraction=fraction, world_size=workers)
        if stage.held_out_frames is not None:
            clip = WindowSpec(stage.held_out_frames(config), stride=spec.stride)
            long_enough(job.store, clip, "held_out", fraction)


def check_prompts(job: Preflight) -> None:
    """Both splits have an episode that holds a rollout."""
    _check_splits(job, job.config.rollout.horizon, ("train", "held_out"))


def check_evaluation_windows(job: Preflight) -> None:
    """A held-out episode is long enough to be evaluated on."""
    _check_splits(job, job.config.evaluation.horizon, ("held_out",))


def _check_splits(job: Preflight, horizon: int, splits: tuple[str, ...]) -> None:
    spec = WindowSpec(horizon + 1, stride=job.config.episodes.frame_stride)
    for split in splits:
        long_enough(job.store, spec, split, job.config.episodes.held_out_fraction)


def _views_in(store: EpisodeStore) -> set[str]:
    """Names of the store's views; empty where they are not known."""
    return {name.rpartition(" ")[0] for name in store.statistics.get("views") or {}}  # "front 64x64"


def _action_dims(store: EpisodeStore) -> list[int]:
    return sorted(int(dims) for dims in store.statistics.get("actions") or {})


# --- weights -----------------------------------------------------------------------------------------------------


def check_tokenizer(job: Preflight) -> None:
    """The tokenizer's description and weights can be read."""
    from roboalign_ray.tokenizer.tokenizer import WEIGHTS

    _ = job.tokenizer
    check_weights_file(tokenizer_folder(job.config) / WEIGHTS)


def check_stage_tokenizer(job: Preflight) -> None:
    """A world model that is trained alone has a tokenizer, an earlier run's or the configured one."""
    from roboalign_ray.pipelines.train.train_job import SUMMARY

    stages = job.stages or tuple(stages_of(job.config))
    alone = stages == ("world_model",) and "tokenizer" in stages_of(job.config)
    if alone and not (job.out and (job.out / "tokenizer" / SUMMARY).is_file()):
        check_tokenizer(job)


def check_world_model(job: Preflight) -> None:
    """The folder holds a world model, made for this tokenizer."""
    _ = job.card


def check_model_views(job: Preflight) -> None:
    """The job names as many views as the world model predicts, or the store has so many."""
    named, wanted = job.config.episodes.views, job.card.views
    if named and len(named) < wanted:
        raise UserError(
            f"names {len(named)} {'views' if len(named) > 1 else 'view'}, and the world model predicts {wanted}",
            where="episodes.views",
            remedy="name the views that it was trained on, in their order",
        )
    if not named and 0 < len(views := _views_in(job.store)) < wanted:
        raise UserError(
            f"has {len(views)} {'views' if len(views) > 1 else 'view'} ({', '.join(sorted(views))}), and the world "
            f"model predicts {wanted}",
            where=str(job.store.path),
            remedy="take a store with all views of the world model",
        )


def check_configured_layout(job: Preflight) -> None:
    """The world model is the one that the job describes."""
    registry.check_world_model(job.world_model, tokenizer=tokenizer_folder(job.config), config=job.config)


def check_rollouts(job: Preflight) -> None:
    """The world model knows the refresh policy, and rollouts are whole numbers of its clips."""
    rollout, card = job.config.rollout, job.card
    check_refresh(rollout.refresh, card)
    check_clips(rollout.horizon, card, "rollout.horizon")
    if rollout.branching.most:
        check_clips(rollout.branching.clip_frames, card, "rollout.branching.clip_frames")
    if card.clip_frames > 1 and rollout.horizons.shape != "fixed":
        raise UserError(
            f"rollouts of any length are no whole number of the world model's clips of {card.clip_frames} frames",
            where="rollout.horizons.shape",
            remedy="set it to fixed",
        )


def check_objective(job: Preflight) -> None:
    """The objective trains world models of this kind."""
    name = job.config.alignment.objective
    trains = build_objective(job.config.alignment).trains
    if trains and trains != job.card.kind:
        raise UserError(
            f"the objective '{name}' trains world models of kind '{trains}', and this one is of kind '{job.card.kind}'",
            where="alignment.objective",
            remedy="set another objective (docs/objectives.md), or another world model",
        )


def check_actions(job: Preflight) -> None:
    """Store and world model agree on the number of action dimensions."""
    remedy = "align a model that was pre-trained on it"
    _check_dims(job.store, job.card.action_dims, "the world model", remedy)


def check_action_card(job: Preflight) -> None:
    """The store's actions mean what the world model was trained on: names, kinds, units, bounds, rate and robot."""
    stride = job.config.episodes.frame_stride
    job.notes.extend(compare_actions(job.store, job.store_card, job.world_model, job.card.actions, stride))


def check_trained_actions(job: Preflight) -> None:
    """A world model to be trained takes as many numbers an action as the store has."""
    for stage in _stages(job):
        if stage.action_dims is not None:
            dims, setting = stage.action_dims(job.config)
            found = " or ".join(map(str, _action_dims(job.store)))
            _check_dims(job.store, dims, "the world model", f"set {setting} to {found}")


def check_training_start(job: Preflight) -> None:
    """A diffusion world model that is trained further is the one that the job describes, and knows the store's actions.

    Raises:
        UserError: it is another one; its noise has another scale; or its actions mean something else.
    """
    config = job.config
    start = config.diffusion.training.start if config.world_model_kind == "diffusion" else None
    if start is None:
        return
    folder = registry.folder_of(start)
    if registry.read_description(folder).kind != config.world_model_kind:
        raise UserError(
            "holds no diffusion world model",
            where=str(folder),
            remedy="set diffusion.training.start to one, or to null for new weights",
        )
    card = registry.check_world_model(folder, config=config)
    _check_dims(
        job.store, card.action_dims, "the world model", "continue one that was trained on its actions"
    )
    stride = config.episodes.frame_stride
    job.notes.extend(compare_actions(job.store, job.store_card, folder, card.actions, stride))


def _stages(job: Preflight) -> list[Stage]:
    return [stage_of(job.config, name) for name in job.stages or stages_of(job.config)]


def _check_dims(store: EpisodeStore, wanted: int, what: str, remedy: str) -> None:
    if (found := _action_dims(store)) and found != [wanted]:
        raise UserError(
            f"the store's actions have {' and '.join(map(str, found))} dimensions, {what} {wanted}",
            where=str(store.path),
            remedy=remedy,
        )


# --- judges ------------------------------------------------------------------------------------------------------


def check_reward(job: Preflight) -> None:
    """Every reward from outside this package can be imported, and takes its settings."""
    from roboalign_ray.rewards.registry import check_rewards

    check_rewards(job.config.reward)


def check_judge(job: Preflight) -> None:
    """Where a student rewards: the student, the pairs that it is trained further on, and its teacher are there."""
    if not job.config.reward.needs_judge:
        return
    check_student(job)
    replay = open_pairs(replay_folder(job.config))
    if not len(replay):
        raise UserError(
            "holds no pair", where=str(replay.path), remedy="make some with: roboalign bench build"
        )
    if job.config.judge.relabel.teacher == "vlm":
        check_teacher(job)


def check_judges(job: Preflight) -> None:
    """The judges of `evaluation.judges` are there."""
    judges = job.config.evaluation.judges
    if "student" in judges:
        check_student(job)
    if "vlm" in judges:
        check_teacher(job)
    for name in judges:
        if name not in BUILT_IN_JUDGES:
            JUDGES.load(name, "evaluation.judges")


def check_report_judges(job: Preflight) -> None:
    """A report scores rollouts where a student rewards."""
    if job.config.reward.needs_judge:
        check_judges(job)


def check_student(job: Preflight) -> None:
    """The folder holds a student of this version's format."""
    from roboalign_ray.judge.student.model import WEIGHTS, read_description

    folder = student_folder(job.config)
    read_description(folder)
    check_weights_file(folder / WEIGHTS)


def check_teacher(job: Preflight) -> None:
    """The vision-language teacher's model is one, its adapter belongs to it, and its backend is installed.

    A model's name is looked up when it is loaded, and a server is asked when the job asks it first.
    """
    from roboalign_ray.judge.teacher.model_sources import check_adapter, model_source

    teacher = job.config.teacher
    if teacher.backend == "openai":
        return
    if teacher.backend == "vllm" and job.config.cluster.address == "local" and not _installed("vllm"):
        raise UserError("vllm is not installed", where="teacher.backend", remedy=TEACHER_EXTRA)
    source = Path(model_source(teacher.model))
    if source.is_dir() and "vision_config" not in read_object(source / "config.json", "model config"):
        raise UserError(
            "is no vision-language model",
            where=str(source),
            remedy="set teacher.model to a model's name or to a folder written by 'roboalign judge train'",
        )
    if teacher.adapter:
        check_adapter(teacher.adapter, teacher.model)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def check_bench_weights(job: Preflight) -> None:
    """A bench that rolls the world model out has one that fits its store."""
    if job.rollouts and job.config.bench.rollout:
        for check in (check_tokenizer, check_world_model, check_actions, check_action_card):
            check(job)
