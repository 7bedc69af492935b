"""Every command in the documentation: read by the real command line, its profile and settings checked, or run.

A block that holds another program's commands says so in the Markdown, in a comment before it:

    <!-- not run by tests: needs a cluster -->
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from roboalign_ray.config.loading import load_job
from roboalign_ray.pipelines.cli.main import app, run

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "BENCHMARKS.md",
    *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md"))),
)
BLOCK = re.compile(
    r"(?P<mark><!-- not run by tests: (?P<why>[^\n]+) -->\n)?"
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
SHELL = {"sh", "bash", "shell", "console"}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
# Started here for real: they take seconds, and write nothing outside the folder that they are started in.
RUN = {"plan", "simulate", "episodes convert", "episodes inspect", "--help"}


@dataclass(frozen=True)
class Documented:
    """A command line: its page and block's line, its words, and whether the block says that tests don't run it."""

    page: str
    line: int
    words: tuple[str, ...]
    excused: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    @property
    def ours(self) -> bool:
        return self.words[0] == "roboalign"


def documented(page: str, text: str) -> list[Documented]:
    found = []
    for block in BLOCK.finditer(text):
        if block["kind"] not in SHELL:
            continue
        line = text[: block.start("text")].count("\n") + 1
        for command in block["text"].replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            while words and ASSIGNMENT.fullmatch(words[0]):
                words.pop(0)
            if words:
                found.append(Documented(page, line, tuple(words), block["mark"] is not None))
    return found


COMMANDS = [found for page in PAGES for found in documented(page, (REPOSITORY / page).read_text("utf-8"))]
OURS = [found for found in COMMANDS if found.ours]


def parsed(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The command's name, such as "judge score", and its parameters' values, as the real command line reads them."""
    command: Any = typer.main.get_command(app)
    names: list[str] = []
    context = command.make_context("roboalign", list(words[1:]))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    return " ".join(names), context.params


def example_files(folder: Path) -> None:
    """What the examples name: files whose text the documentation shows, and a small data set."""
    from episode_files import write_lerobot_v2

    readme = (REPOSITORY / "README.md").read_text("utf-8")
    for block in BLOCK.finditer(readme):
        if block["kind"] == "yaml" and (named := re.match(r"# (\S+\.yaml)\n", block["text"])):
            (folder / named[1]).write_text(block["text"])
    (folder / "nodes.yaml").write_text("nodes: [{cpus: 64, gpus: 8, memory_gb: 512}]\n")
    (folder / "cluster_configs").symlink_to(REPOSITORY / "cluster_configs")
    write_lerobot_v2(folder / "path/to/dataset", [6] * 8)


def test_the_documentation_is_found() -> None:
    assert {found.page for found in OURS} >= {
        "README.md",
        "docs/chaos.md",
        "docs/clusters.md",
        "docs/judge.md",
    }
    assert len(OURS) > 40


def test_other_programs_commands_are_marked() -> None:
    assert [str(found) for found in COMMANDS if not found.ours and not found.excused] == []


def test_no_mark_stands_without_need() -> None:
    for page in PAGES:
        text = (REPOSITORY / page).read_text("utf-8")
        marks = text.count("not run by tests:")
        blocks = {found.line for found in COMMANDS if found.page == page and found.excused and not found.ours}
        assert marks == len(blocks), page


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_documented_command_is_understood(
    command: Documented, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command, option and argument exists; the profile is known and every `--set` fits it."""
    example_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    if command.words[1:] == ("--help",):
        return
    name, values = parsed(command.words)
    assert name
    if (profile := values.get("profile")) is not None:
        load_job(profile, values.get("overrides") or ())
    for word in command.words:
        if word.startswith(("cluster_configs/", "benchmarks/", "roboalign_ray/")):
            assert (REPOSITORY / word).exists(), word


@pytest.mark.parametrize("page", sorted({found.page for found in OURS}))
def test_the_cheap_ones_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In the documentation's order, from one folder: what one writes the next one reads."""
    example_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in OURS:
        name = "--help" if "--help" in command.words else parsed(command.words)[0]
        if command.page != page or name not in RUN or command.excused:
            continue
        code = run(list(command.words[1:]))
        out, told = capsys.readouterr()
        if name == "plan" and "--cluster" not in command.words:
            # This machine need not have room; it is then said in one line.
            assert code in (0, 2), told
            assert "Traceback" not in told
        else:
            assert code == 0, f"{command}\n{told}"
        assert out or code


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("roboalign algin demo", "No such command 'algin'"),
        ("roboalign align demo --resme", "No such option: --resme"),
        ("roboalign judge score a.mp4", "Missing option '--instruction'"),
        ("roboalign evaluate demo --protocol twostep", "'twostep' is not one of"),
    ],
)
def test_the_reader_sees_what_it_must(line: str, wrong: str) -> None:
    with pytest.raises(typer.TyperException) as caught:
        parsed(tuple(line.split()))
    assert wrong in caught.value.format_message()


def test_commands_are_taken_out_of_blocks_whole() -> None:
    marked = "<!-- not run by tests: it is slow -->\n```sh\nmake it\n```\n"
    text = f"```sh\nA=1 roboalign plan demo \\\n    --json   # why\n\n```\n{marked}"
    assert documented("x.md", text) == [
        Documented("x.md", 2, ("roboalign", "plan", "demo", "--json"), False),
        Documented("x.md", 8, ("make", "it"), True),
    ]
