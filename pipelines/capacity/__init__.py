"""What a job needs and where it fits: sizes, placement, the plan, the load simulation."""
