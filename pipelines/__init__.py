"""Whole jobs: they wire actors, data and config together; the command line lives here."""

from roboalign_ray.pipelines.cluster.signals import end_at_once_until_main as _end_at_once_until_main

_end_at_once_until_main()
