"""What a report says about the machine."""

from __future__ import annotations

import platform

import numpy as np

from roboalign_ray.foundation import environment


def test_versions_are_those_installed() -> None:
    found = environment.versions(["numpy", "no-such-package"])
    assert found == {"python": platform.python_version(), "numpy": np.__version__}


def test_hardware_is_one_line_with_the_cores() -> None:
    line = environment.hardware()
    assert line.startswith(f"{environment.usable_cores()} CPU core")
    assert "\n" not in line
