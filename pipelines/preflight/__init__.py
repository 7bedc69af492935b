"""Checks of a job and of its inputs before Ray starts."""
