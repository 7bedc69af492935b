"""What every room stands on: failures, checkpoints, progress, telemetry. Knows nothing of robots or video."""
