"""The token world model: sequence layout, transformer, rollout engine, context refresh."""
