"""Capacity planning: the sizes of a job, its placement on a cluster, the plan, and the load simulation."""
