"""The report: one self-contained HTML file that says whether alignment helped."""

from roboalign_ray.evaluation.report.data import (
    Comparison,
    EpisodeClip,
    ReportData,
    Table,
    compare,
    one_step_table,
)
from roboalign_ray.evaluation.report.html import write_report

__all__ = ["Comparison", "EpisodeClip", "ReportData", "Table", "compare", "one_step_table", "write_report"]
