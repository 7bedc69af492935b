"""Imports run one way. Walks every syntax tree, imports inside functions and for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Rooms from the ground up, as levels: a room imports rooms of lower levels only, none of its own level.
LEVELS = (
    ("foundation",),
    ("plugins",),
    ("config",),
    ("episodes", "metrics", "tokenizer"),
    ("world_model", "inverse_dynamics"),
    ("judge", "scheduling"),
    ("rewards", "evaluation"),
    ("alignment", "planning"),
    ("actors",),
    ("cluster_configs",),
    ("pipelines",),
)
RANK = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
CLUSTER_ROOMS = ("actors", "pipelines")
DISTRIBUTED = {"ray", "vllm", "deepspeed"}


def modules(room: str) -> list[Path]:
    """Every module of a room; some rooms stand beside the library and are linked into it, one is a single module."""
    if (alone := REPOSITORY / "roboalign_ray" / f"{room}.py").is_file():
        return [alone]
    beside = REPOSITORY / room
    return sorted((beside if beside.is_dir() else REPOSITORY / "roboalign_ray" / room).rglob("*.py"))


@cache
def imported(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, absolute dotted name) of everything that a module imports."""
    return tuple(names_in(path.read_text(encoding="utf-8"), package_of(path)))


def package_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(REPOSITORY).parent.parts
    return parts if parts[0] == "roboalign_ray" else ("roboalign_ray", *parts)


def names_in(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def offences(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for path in paths
        for line, name in imported(path)
        if any(inside(name, package) for package in forbidden)
    ]


def library(*rooms: str) -> set[str]:
    return {f"roboalign_ray.{room}" for room in rooms}


@pytest.mark.parametrize("room", RANK)
def test_rooms_know_only_rooms_of_lower_levels(room: str) -> None:
    assert modules(room)
    forbidden = library(*(other for other in RANK if other != room and RANK[other] >= RANK[room]))
    assert offences(modules(room), forbidden) == []


def test_every_room_is_on_the_plan() -> None:
    rooms = {path.parent.name for path in (REPOSITORY / "roboalign_ray").glob("*/__init__.py")}
    assert rooms <= set(RANK)


def test_only_actors_and_pipelines_know_the_cluster() -> None:
    paths = [path for room in RANK if room not in CLUSTER_ROOMS for path in modules(room)]
    assert offences(paths, DISTRIBUTED) == []


def test_nothing_imports_the_folders_beside_the_library_by_another_name() -> None:
    """`import pipelines` would work in the checkout alone, and load every module a second time."""
    paths = [path for room in RANK for path in modules(room)]
    assert offences(paths, {"actors", "pipelines", "cluster_configs"}) == []


def test_config_uses_failures_alone_and_nothing_heavy() -> None:
    paths = modules("roboalign_ray/config")
    assert offences(paths, {"torch", "numpy", "transformers", *DISTRIBUTED}) == []
    names = {name for path in paths for _, name in imported(path) if inside(name, "roboalign_ray.foundation")}
    allowed = ("failures", "machine_paths", "secrets")
    assert all(
        any(inside(name, f"roboalign_ray.foundation.{module}") for module in allowed) for name in names
    )


def test_the_library_reaches_its_rooms_by_absolute_names() -> None:
    """`import roboalign_ray` alone must stay light: its own module imports two small ones of the standard library's."""
    names = {name for _, name in imported(REPOSITORY / "roboalign_ray" / "__init__.py")}
    light = (
        "typing",
        "roboalign_ray.api",  # when a public name is first asked for
        "roboalign_ray.foundation.torchvision_guard",
        "roboalign_ray.foundation.thread_waits",
    )
    assert all(any(inside(name, module) for module in light) for name in names)


def test_the_walker_sees_what_it_must() -> None:
    """The rules are worth nothing if an import can hide inside a function or behind a relative name."""
    hidden = """
def f():
    import ray.data
    from ..judge import rubric
    from . import protocol
    __import__("vllm")
if TYPE_CHECKING:
    from deepspeed import initialize
"""
    assert {name for _, name in names_in(hidden, ("roboalign_ray", "rewards"))} == {
        "ray.data",
        "roboalign_ray.judge.rubric",
        "roboalign_ray.rewards.protocol",
        "vllm",
        "deepspeed.initialize",
    }
