"""Whole jobs: they wire actors, data and config together; the command line lives here."""

from pipelines.own_packages import pin_packages as _pin_packages
from pipelines.signals import end_at_once_until_main as _end_at_once_until_main

_end_at_once_until_main()
_pin_packages()
