"""The judge during alignment: rollout annotation, relabelling, re-distillation."""
