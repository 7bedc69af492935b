"""The token world model: transformer, rollout engine, refresh, pre-training."""
