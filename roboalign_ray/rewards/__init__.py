"""Rewards behind one protocol."""
