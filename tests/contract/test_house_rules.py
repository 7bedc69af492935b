"""Sizes that read well, a word at the head of every module, and nothing of the machine it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("roboalign_ray", "actors", "pipelines", "cluster_configs")
MODULE_LINES, FUNCTION_LINES = 450, 80
MEDIAN_LINES, P90_LINES = 130, 280  # over all modules, packages' own docstrings included

# Folders of one person's machine, and places that only one network has. Written so that they do not find themselves.
MACHINE_PATH = re.compile(r"(?<![\w.$~{}>-])/(?:work|opt|root|home|Users|mnt|media|scratch)/[\w.-]+")
ADDRESS = re.compile(r"(?<![\w.=])(?!127\.0\.0\.1|0\.0\.0\.0)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
INDEX_HOST = re.compile(r"(?:pypi|pythonhosted|huggingface)\.(?:org|co)\b", re.IGNORECASE)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


@cache
def trees() -> dict[Path, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_modules_and_functions_stay_short() -> None:
    long = []
    for path, tree in trees().items():
        name = path.relative_to(REPOSITORY)
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MODULE_LINES:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_most_modules_are_shorter_still() -> None:
    """Split at a seam, such as a second class or a second job, when this fails; a helper module is no seam."""
    lengths = sorted(path.read_text(encoding="utf-8").count("\n") for path in trees())
    assert lengths[len(lengths) // 2] <= MEDIAN_LINES
    assert lengths[len(lengths) * 9 // 10] <= P90_LINES


def test_every_module_says_what_it_is_for() -> None:
    assert [
        str(path.relative_to(REPOSITORY)) for path, tree in trees().items() if not ast.get_docstring(tree)
    ] == []


@pytest.mark.parametrize("pattern", [MACHINE_PATH, ADDRESS, INDEX_HOST], ids=["path", "address", "index"])
def test_nothing_of_one_machine_is_tracked(pattern: re.Pattern[str]) -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_no_lock_file_is_tracked() -> None:
    """A lock made beside a folder of wheels holds that folder's path."""
    assert [
        path.name for path in tracked_files() if path.name in ("uv.lock", "poetry.lock", "Pipfile.lock")
    ] == []
