"""Jobs of closed-loop planning in Meta-World."""
