"""Files: readers with limits, atomic writes, locks, checkpoints, shards."""
