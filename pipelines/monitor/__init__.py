"""Monitoring of a running alignment job: terminal view, Prometheus metrics, call trace."""
