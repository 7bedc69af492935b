"""How OpenMP's threads wait, in processes whose PyTorch is loaded after this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


def child(code: str, **chosen: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"PYTHONPATH": str(REPOSITORY), **chosen}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() + done.stderr.strip()


@pytest.mark.parametrize(
    "package", ["roboalign_ray", "roboalign_ray.actors", "roboalign_ray.pipelines.cli.main"]
)
def test_entering_by_any_package_says_how_to_wait_before_torch_is_there(package: str) -> None:
    look = f"import sys, os, {package}; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    assert child(look) == "False 1000"


def test_openmp_itself_has_understood_it() -> None:
    """The runtime prints its settings when it is loaded, if it is asked to."""
    told = child("import roboalign_ray, torch", OMP_DISPLAY_ENV="verbose")
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("this PyTorch brings another OpenMP than libgomp")
    assert "GOMP_SPINCOUNT = '1000'" in told


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_has_chosen_stays(chosen: dict[str, str]) -> None:
    look = (
        "import os, roboalign_ray; print(*(os.environ.get(n) for n in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')))"
    )
    expected = " ".join(str(chosen.get(name)) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    assert child(look, **chosen) == expected
