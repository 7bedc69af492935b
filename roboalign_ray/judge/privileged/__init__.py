"""The teacher that measures a video against the real continuation."""
