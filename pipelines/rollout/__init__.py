"""Rollouts of a world model as files: video, GIF and a LeRobot dataset."""
