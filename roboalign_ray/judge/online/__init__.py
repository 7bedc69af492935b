"""The judge during alignment: annotation of rollouts, relabelling, re-distillation."""
