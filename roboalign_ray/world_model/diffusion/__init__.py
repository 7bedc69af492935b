"""The diffusion world model: denoiser, noise schedule, rollout engine, pre-training."""
