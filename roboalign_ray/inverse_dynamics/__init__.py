"""Inverse dynamics: actions read from video, what a robot can execute, and whether a model may judge it."""
