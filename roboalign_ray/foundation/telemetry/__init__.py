"""Metrics, experiment tracking, progress, traces."""
