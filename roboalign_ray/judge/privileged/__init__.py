"""The privileged teacher: it compares a video with its real continuation."""
