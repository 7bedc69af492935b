"""One worker's teacher in training: a VLM with AdamW in a DeepSpeed engine, with checkpoints and export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from roboalign_ray.config import TeacherConfig
from roboalign_ray.foundation.failures import UserError

ADAPTER, MERGED = "adapter", "merged"
_COSINE_FLOOR = 0.05
_KEPT = 2  # number of engine checkpoints, the same as Ray Train keeps


class DeepSpeedTeacher:
    """A VLM with AdamW in a DeepSpeed engine, inside a Ray Train worker.

    The engine writes its own checkpoints, one part per worker, in the same steps as the job's checkpoints, which name
    the engine's checkpoint.

    Args:
        config: the teacher's config.
        source: model name or folder.
        checkpoints: folder that all workers can access.

    Attributes:
        model: the model to keep.
        steps_done: number of optimizer steps.
    """

    def __init__(self, config: TeacherConfig, source: str, checkpoints: Path) -> None:
        import torch
        from ray.train.torch import get_device

        from roboalign_ray.actors.deepspeed_policy import engine_config
        from roboalign_ray.foundation.optimisation import decayed_parameters
        from roboalign_ray.judge.teacher.learning import ScoreReader, lora_model
        from roboalign_ray.judge.teacher.transformers_backend import VideoPrompter, load_model

        self.config, self.settings, self._source = config, config.training, source
        self._checkpoints, self.steps_done = checkpoints, 0
        self.prompter = VideoPrompter(source, config)
        model = load_model(source, self.settings.precision)
        if self.settings.method == "lora":
            model = lora_model(model, config)
        self.model = model
        if self.settings.regression_weight:
            model = ScoreReader(model)
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
        import deepspeed

        groups = decayed_parameters(model, self.settings.weight_decay)
        self.device = get_device()
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model.to(self.device),
            optimizer=torch.optim.AdamW(groups, self.settings.learning_rate, betas=(0.9, 0.98)),
            config=engine_config(
                cast(Any, self.settings)
            ),  # uses only fields that both kinds of settings have
        )

    def step(self, pairs: Sequence[Any]) -> dict[str, float]:
        """Make one optimizer step on this worker's pairs.

        Returns:
            "loss" (nats per weighted token, plus the head's loss), "score_nll", "score_accuracy", "read_mae" if there
            is a head, "learning_rate".
        """
        from roboalign_ray.foundation.optimisation import learning_rate_factor, set_learning_rate
        from roboalign_ray.judge.teacher.learning import answer_batch, answer_loss, reading_loss

        settings, size = self.settings, self.settings.micro_batch
        factor = learning_rate_factor(
            self.steps_done,
            warmup=settings.warmup,
            total=settings.steps,
            schedule="cosine",
            floor=_COSINE_FLOOR,
        )
        set_learning_rate(self.optimizer, settings.learning_rate * factor)
        self.engine.train()
        batches = [
            answer_batch(pairs[first : first + size], self.prompter, self.config).to(self.device)
            for first in range(0, len(pairs), size)
        ]
        weight = sum(float(batch.weights.sum()) for batch in batches)
        total, parts = 0.0, []
        for number, batch in enumerate(batches):
            if settings.regression_weight:
                answer_part, read_loss, metrics = reading_loss(self.engine, batch, settings.huber_delta)
                loss = answer_part / weight + settings.regression_weight * read_loss / len(pairs)
            else:
                answer_part, metrics = answer_loss(self.engine, batch)
                loss = answer_part / weight
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            self.engine.backward(loss)
            total += float(loss.detach())
            parts.append(metrics)
        self.engine.step()
        self.steps_done += 1
        if self.steps_done % settings.checkpoint_every == 0 and self.steps_done < settings.steps:
            self._checkpoint()
        means = {key: sum(metrics[key] for metrics in parts) / len(parts) for key in parts[0]}
        return {"loss": total, **means, "learning_rate": settings.learning_rate * factor}

    def state_dict(self) -> dict[str, Any]:
        """The step, which identifies the engine's checkpoint, and whether there is a head that reads scores."""
        reads = bool(self.settings.regression_weight)
        return {"steps_done": self.steps_done, "reads": reads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            UserError: the engine's checkpoint is missing or cannot be read, or only one of state and config has the
                head that reads scores.
        """
        from roboalign_ray.actors.deepspeed_state import load_engine

        if state.get("reads", False) != bool(self.settings.regression_weight):
            raise UserError(
                "regression_weight was zero in one part of the run and not in the other",
                where="teacher.training.regression_weight",
                remedy="resume with the original value, or start in another folder",
            )
        load_engine(self.engine, self._checkpoints / self._tag(int(state["steps_done"])))
        self.steps_done = int(state["steps_done"])

    def save(self, folder: Path) -> None:
        """Write adapter and merged model, or the whole model, in bfloat16, with processor and prompt settings."""
        import torch

        from roboalign_ray.judge.teacher.model_sources import describe_base
        from roboalign_ray.judge.teacher.prompt_contract import write_asking

        model = self.model.cpu()
        if self.settings.method == "lora":
            model.save_pretrained(folder / ADAPTER)
            describe_base(self._source, folder / ADAPTER)
            write_asking(folder / ADAPTER, self.config)
            model = model.merge_and_unload()
        model.to(torch.bfloat16).save_pretrained(folder / MERGED)
        copy_processor(self._source, folder / MERGED)
        write_asking(folder / MERGED, self.config)

    def _checkpoint(self) -> None:
        import torch.distributed as dist

        from roboalign_ray.actors.deepspeed_state import save_engine

        save_engine(self.engine, self._checkpoints / self._tag(self.steps_done))
        if not dist.is_initialized() or dist.get_rank() == 0:
            old = self.steps_done - _KEPT * self.settings.checkpoint_every
            shutil.rmtree(self._checkpoints / self._tag(old), ignore_errors=True)

    def _tag(self, step: int) -> str:
        return f"step-{step:08d}"


def copy_processor(source: str, folder: Path) -> None:
    """Copy the original processor, without the frame limits set in training."""
    from transformers import AutoProcessor

    AutoProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
