"""Training the VLM teacher: maximum likelihood on judged pairs, as a Ray Train job on DeepSpeed.

    stores of pairs ──► PairBatches ──► DeepSpeedTeacher ──► out/teacher/adapter   LoRA alone
                        by step         engine per worker └► out/teacher/merged    transformers and vLLM load it

The model is `teacher.model`, or a small one made from scratch. A run that was cut short goes on from its newest
checkpoint; a complete one is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.judge_engine import ADAPTER, MERGED, DeepSpeedTeacher
from pipelines.train_job import TrainJob, check_shares, run_train_job, train_worker
from roboalign_ray.config import JobConfig, TeacherConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.files import complete_or_absent
from roboalign_ray.judge.labels import LabelledPairs, ReplaySampler

TEACHER = "teacher"
_START, _ENGINE = "start", "engine"
_READ_DEADLINE_S = 600.0


def run_judge_train(
    config: JobConfig, pairs: Sequence[str | Path], out: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """Train a teacher.

    Args:
        config: its `teacher` section, and `cluster.trainer`.
        pairs: stores of judged pairs and distillation sets.
        out: run directory.
        quiet: no progress on the terminal.

    Returns:
        "model" and, with LoRA, "adapter": folders; and training's last metrics.

    Raises:
        UserError: pairs or model cannot be read, nothing is left to train on, or peft is missing.
        RoleFailure: training failed more often than its workers may be restarted.
    """
    from pipelines.runtime import start_ray

    out, paths = out.absolute(), [str(Path(path).absolute()) for path in pairs]
    settings = config.teacher.training
    material = LabelledPairs(paths)
    if not len(material.split("train", settings.held_out_fraction)):
        raise UserError(
            "no judged pair in the train split",
            where=", ".join(paths),
            remedy="give more episodes' pairs, or change teacher.training.held_out_fraction",
        )
    check_shares(
        settings.pairs_per_step,
        "pairs",
        config.cluster.trainer.workers,
        where="teacher.training.pairs_per_step",
    )
    source = _start(config.teacher, material, out)
    spec = {"config": config.model_dump(), "out": str(out), "pairs": paths, "source": source}
    with start_ray(config.cluster, worker_logs=False):
        summary = run_train_job(
            _train,
            spec,
            out,
            TEACHER,
            role=config.cluster.trainer,
            steps=settings.steps,
            shown=("loss", "score_accuracy"),
            quiet=quiet,
        )
    folders = {"model": str(out / TEACHER / MERGED)}
    if settings.method == "lora":
        folders["adapter"] = str(out / TEACHER / ADAPTER)
    return {**folders, **summary}


def _start(config: TeacherConfig, pairs: LabelledPairs, out: Path) -> str:
    """The folder or name of the model that training starts from; a small one is made once per run."""
    from roboalign_ray.judge.teacher.small import make_small_teacher
    from roboalign_ray.judge.teacher.sources import model_source
    from roboalign_ray.judge.teacher.transformers_backend import import_peft

    if config.training.method == "lora":
        import_peft()
    if config.training.start == "model":
        return model_source(config.model)
    folder = out / _START
    if not folder.is_dir():
        with complete_or_absent(folder) as writing:
            make_small_teacher(config, pairs.instructions, writing)
    return str(folder)


def _train(spec: dict[str, Any]) -> None:
    """What every worker runs."""
    config = JobConfig.model_validate(spec["config"])
    train_worker(
        lambda: _job(config, spec),
        Path(spec["out"]),
        TEACHER,
        role=config.cluster.trainer,
        seed=config.teacher.seed,
    )


def _job(config: JobConfig, spec: dict[str, Any]) -> TrainJob:
    import ray.train

    settings, context = config.teacher.training, ray.train.get_context()
    trainer = DeepSpeedTeacher(config.teacher, spec["source"], Path(spec["out"]) / _ENGINE)
    return TrainJob(
        trainer=trainer,
        stream=PairBatches(spec["pairs"], config.teacher, context.get_world_rank(), context.get_world_size()),
        step=lambda batch: trainer.step(batch["pairs"]),
        save=trainer.save,
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )


class PairBatches:
    """Endless batches of judged pairs in an order that depends on the seed alone; the next one is read ahead.

    Args:
        paths: stores of pairs and distillation sets.
        config: batch size, split and seed.
        rank, world_size: this worker's share; shares are disjoint.
    """

    def __init__(self, paths: Sequence[str], config: TeacherConfig, rank: int, world_size: int) -> None:
        settings = config.training
        self._pairs = LabelledPairs(paths)
        self._train = self._pairs.split("train", settings.held_out_fraction)
        rounds = self._pairs.rounds[self._train]
        self._sampler = ReplaySampler(0 * rounds, settings.pairs_per_step, 0.0, config.seed)
        self._share = slice(rank, None, world_size)
        self._identity = {
            "seed": config.seed,
            "world_size": world_size,
            "pairs": len(self._pairs),
            "pairs_per_step": settings.pairs_per_step,
        }
        self._step = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """{"pairs": this worker's pairs of the step}, for ever."""
        with ThreadPoolExecutor(1, thread_name_prefix="pairs") as background:
            following = background.submit(self._read, self._step)
            while True:
                pairs = following.result(timeout=_READ_DEADLINE_S)
                self._step += 1
                following = background.submit(self._read, self._step)
                yield {"pairs": pairs}

    def state_dict(self) -> dict[str, Any]:
        """The position: steps handed out, with what the order depends on."""
        return {**self._identity, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Raises:
            UserError: the state belongs to another order.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise UserError(
                    f"the saved position has {key} {state.get(key)}, this run {value}",
                    where="teacher.training",
                    remedy="resume with the settings and pairs the run began with, or start a new one",
                )
        self._step = int(state["step"])

    def _read(self, step: int) -> list[Any]:
        positions = self._train[self._sampler.positions(step)[self._share]]
        return [self._pairs.read(int(number)) for number in positions]
