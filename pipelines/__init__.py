"""Whole jobs: they wire actors, data and config together; the command line lives here."""

from pipelines.own_packages import pin_packages as _pin_packages

_pin_packages()
