"""What machines install: one tested set of versions, the extra that teachers need, and nothing that is not needed."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LAUNCHERS = sorted((REPOSITORY / "cluster_configs" / "ray_up").glob("*.yaml"))


def pinned(python: str) -> dict[str, str]:
    """Versions of constraints.txt for one Python on Linux."""
    found = {}
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [specifier] = requirement.specifier
            assert specifier.operator == "==", line
            name = canonicalize_name(requirement.name)
            assert found.setdefault(name, specifier.version) == specifier.version
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_one_set_of_versions_serves_the_package_and_all_extras(python: str) -> None:
    versions = pinned(python)
    wanted = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    for text in wanted:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


def test_no_version_is_of_one_machine() -> None:
    """A local build such as +cpu would be found nowhere else."""
    assert not [name for name, version in pinned("3.11").items() if "+" in version]


def test_images_and_launchers_install_the_teacher_at_tested_versions() -> None:
    files = [REPOSITORY / "cluster_configs" / "kuberay" / "Dockerfile", *LAUNCHERS]
    assert len(files) == 4
    for path in files:
        installs = [line for line in path.read_text().splitlines() if "roboalign_ray[" in line]
        assert installs, path
        for line in installs:
            assert "roboalign_ray[teacher]" in line, path
            assert re.search(r"--constraint \S*roboalign_ray/constraints\.txt", line), path


def test_the_image_gets_what_the_build_needs_and_no_more() -> None:
    ignored = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]

    def left_out(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in ignored)

    needed = [
        "roboalign_ray",
        "actors",
        "pipelines",
        "cluster_configs",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ]
    assert not [name for name in [*needed, "constraints.txt"] if left_out(name)]
    assert all(left_out(name) for name in [".git", ".venv", "runs", "tests", ".env"])
