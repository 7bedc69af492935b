"""The alignment job: the loop, its workers, checkpoints, replay."""
