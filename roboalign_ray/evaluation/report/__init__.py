"""The report: one self-contained HTML file that shows whether alignment helped."""

from roboalign_ray.evaluation.report.assemble import (
    ScorePair,
    compare,
    episode_clips,
    frame_curves,
    method_table,
    one_step_table,
    paired_table,
    policy_curves,
)
from roboalign_ray.evaluation.report.data import Comparison, EpisodeClip, ReportData, Table
from roboalign_ray.evaluation.report.html import write_report

__all__ = [
    "Comparison",
    "EpisodeClip",
    "ReportData",
    "ScorePair",
    "Table",
    "compare",
    "episode_clips",
    "frame_curves",
    "method_table",
    "one_step_table",
    "paired_table",
    "policy_curves",
    "write_report",
]
