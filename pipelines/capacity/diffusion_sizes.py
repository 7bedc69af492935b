"""The sizes of a job with a diffusion world model: parameters per part, and bytes of weights and pixels."""

from __future__ import annotations

from roboalign_ray.config import JobConfig

_FLOAT_BYTES = 4


def parameter_counts(config: JobConfig) -> dict[str, dict[str, int]]:
    """Parameters per part of "world_model", with its "total"; counted on the real module, which allocates nothing."""
    import torch

    from roboalign_ray.world_model.diffusion.network import Denoiser

    with torch.device("meta"):
        network = Denoiser(config.diffusion.denoiser)
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in network.named_children()
        if any(True for _ in part.parameters())
    }
    return {"world_model": {**counts, "total": sum(counts.values())}}


def byte_sizes(config: JobConfig) -> dict[str, int]:
    """Bytes of the weights, of a training step's windows, and of a rollout as pixels of all views."""
    denoiser, training = config.diffusion.denoiser, config.diffusion.training
    frame = denoiser.views * denoiser.height * denoiser.width * 3
    return {
        "weights": _FLOAT_BYTES * parameter_counts(config)["world_model"]["total"],
        "training_step_windows": training.windows_per_step * (1 + config.diffusion.window_frames) * frame,
        "pixels": config.rollout.horizon * frame,
    }
