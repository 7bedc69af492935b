"""The chaos job: injects faults into a running alignment job and reports their effects."""
