"""What a report says about the machine, against the system's own figures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil

from roboalign_ray.foundation import environment


def test_versions_are_those_installed() -> None:
    found = environment.versions(["numpy", "no-such-package"])
    assert found == {"python": sys.version.split()[0], "numpy": np.__version__}


def test_hardware_names_the_memory_that_the_system_has() -> None:
    line = environment.hardware()
    cores, memory, *_ = line.split(", ")
    assert cores.split(" ")[1:] in (["CPU", "core"], ["CPU", "cores"])
    assert memory == f"{psutil.virtual_memory().total / 2**30:.0f} GiB memory"
    assert "\n" not in line


def test_a_process_bound_to_one_core_counts_one() -> None:
    program = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from roboalign_ray.foundation import environment
print(environment.usable_cores(), environment.hardware())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 1 CPU core, ")
