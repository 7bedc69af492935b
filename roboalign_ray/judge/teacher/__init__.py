"""The teacher: a vision-language model that watches a robot video, reasons, and scores it by the rubric."""
