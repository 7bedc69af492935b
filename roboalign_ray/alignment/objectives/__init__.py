"""Objectives of post-training: losses on scored groups."""
