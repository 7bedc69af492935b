"""What a running alignment job shows: terminal view, Prometheus metrics, call trace."""
