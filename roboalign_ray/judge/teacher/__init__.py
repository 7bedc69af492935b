"""The teacher: a vision-language model that reads a robot video, reasons, and scores it by the rubric."""
