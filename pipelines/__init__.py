"""Whole jobs: they wire actors, data and config together; the command line lives here."""
