"""Scored groups, their files and the journal."""
