"""A student judge of toy size."""

from __future__ import annotations

import torch

from roboalign_ray.config.judge import StudentConfig
from roboalign_ray.judge.student.model import Student

TINY = {
    "height": 16,
    "width": 16,
    "frames": 3,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "ffn": 16,
    "text_hidden": 8,
    "text_layers": 1,
    "text_heads": 2,
    "text_ffn": 8,
    "text_buckets": 64,
    "fusion_layers": 1,
    "fusion_queries": 2,
}


def tiny_student(seed: int = 0, **changes) -> Student:
    """Untrained, with heads that tell videos apart."""
    torch.manual_seed(seed)
    student = Student(StudentConfig.small(**{**TINY, **changes}))
    torch.nn.init.normal_(student.head.weight, std=0.05)
    torch.nn.init.normal_(student.variance_head.weight, std=0.05)
    return student.eval()
