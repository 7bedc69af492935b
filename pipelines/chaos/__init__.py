"""The chaos job: faults injected into a running alignment job, and the report of what they cost."""
