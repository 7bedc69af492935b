"""Imports run one way. Walks every syntax tree, imports inside functions and for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# A package may import those after it, never those before.
LAYERS = ("cluster_configs", "pipelines", "actors", "roboalign_ray")
# A room of the library may import rooms before it; foundation knows nobody and everybody may know it.
ROOMS = (
    "config",
    "episodes",
    "tokenizer",
    "world_model",
    "judge",
    "rewards",
    "alignment",
    "planning",
    "evaluation",
)
FOUNDATION = "foundation"
DISTRIBUTED = {"ray", "vllm", "deepspeed"}


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


@cache
def imported(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, absolute dotted name) of everything that a module imports."""
    return tuple(names_in(path.read_text(encoding="utf-8"), path.relative_to(REPOSITORY).parent.parts))


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


@pytest.mark.parametrize("package", LAYERS)
def test_no_package_knows_who_stands_on_it(package: str) -> None:
    assert modules(package)
    assert offences(modules(package), set(LAYERS[: LAYERS.index(package)])) == []


def test_only_actors_and_pipelines_know_the_cluster() -> None:
    paths = [path for package in ("roboalign_ray", "cluster_configs") for path in modules(package)]
    assert offences(paths, DISTRIBUTED) == []


def test_every_room_is_on_the_plan() -> None:
    rooms = {path.parent.name for path in (REPOSITORY / "roboalign_ray").glob("*/__init__.py")}
    assert rooms <= {*ROOMS, FOUNDATION}


def library(*rooms: str) -> set[str]:
    return {f"roboalign_ray.{room}" for room in rooms}


# What frames are measured with (PSNR, SSIM, LPIPS) stands in evaluation and knows no other room: a reward may use it.
MEASURES = library(
    *(f"evaluation.{name}" for name in ("metrics", "regions", "perceptual", "lpips_backbone", "assets"))
)


@pytest.mark.parametrize("room", [*ROOMS, FOUNDATION])
def test_rooms_know_only_the_rooms_below_them(room: str) -> None:
    forbidden = library(*ROOMS) if room == FOUNDATION else library(*ROOMS[ROOMS.index(room) + 1 :])
    found = offences(modules(f"roboalign_ray/{room}"), forbidden)
    assert [line for line in found if not (room == "rewards" and uses_a_measure(line))] == []


def uses_a_measure(offence: str) -> bool:
    return any(inside(offence.rsplit(" imports ", 1)[-1], measure) for measure in MEASURES)


def test_measures_know_no_room() -> None:
    paths = [REPOSITORY / f"{measure.replace('.', '/')}.py" for measure in sorted(MEASURES)]
    found = offences(paths, library(*ROOMS[1:]))
    assert [line for line in found if not uses_a_measure(line)] == []


def test_alignment_does_not_know_the_judge() -> None:
    assert offences(modules("roboalign_ray/alignment"), library("judge")) == []


def test_config_uses_failures_alone_and_nothing_heavy() -> None:
    paths = modules("roboalign_ray/config")
    assert offences(paths, {"torch", "numpy", "transformers", *DISTRIBUTED}) == []
    names = {name for path in paths for _, name in imported(path) if inside(name, "roboalign_ray.foundation")}
    allowed = ("roboalign_ray.foundation.failures", "roboalign_ray.foundation.secrets")
    assert all(any(inside(name, room) for room in allowed) for name in names)


def test_the_library_reaches_its_rooms_by_absolute_names() -> None:
    """`import roboalign_ray` alone must stay light: its own module imports two small ones of the standard library's."""
    names = {name for _, name in imported(REPOSITORY / "roboalign_ray" / "__init__.py")}
    light = ("roboalign_ray.foundation.torchvision_guard", "roboalign_ray.foundation.thread_waits")
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
