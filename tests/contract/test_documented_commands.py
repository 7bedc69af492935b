"""Every command in the documentation: read by the real command line, its profile and settings checked, and run.

Cheap commands are run as they stand, README's way from episodes to an aligned model with fewer steps. A block that no
test runs says so in the Markdown, in a comment before it:

    <!-- not run by tests: needs a cluster -->

Commands of `roboalign` in such a block are read and checked all the same.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from episode_files import write_lerobot_v2

from roboalign_ray.config.loading import load_job
from roboalign_ray.pipelines.cli.main import app, run

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT_PAGES = ("README.md", "BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = (
    *ROOT_PAGES,
    *(path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "docs").rglob("*.md"))),
)
BLOCK = re.compile(
    r"(?P<mark><!-- not run by tests: (?P<why>[^\n]+) -->\n)?"
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
SHELL = {"sh", "bash", "shell", "console"}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
# Started here for real: they take seconds, and write nothing outside the folder that they are started in.
RUN = {
    "plan",
    "rollout",
    "simulate",
    "version",
    "config show",
    "config schema",
    "episodes convert",
    "episodes inspect",
    "executability fit",
    "executability profiles",
    "--help",
}
# README's way from episodes to an aligned model is run with these, which only make it shorter.
SHORT = (
    "tokenizer_training.steps=2",
    "tokenizer_training.windows_per_step=2",
    "pretraining.steps=2",
    "pretraining.windows_per_step=2",
    "alignment.updates=1",
    "alignment.prompts_per_update=2",
    "alignment.minibatch_prompts=2",
    "alignment.group_size=2",
    "alignment.held_out_prompts=2",
    "evaluation.episodes=2",
    "evaluation.horizon=12",
    "evaluation.lpips_network=alex",
    "reward.fidelity.lpips_network=random-alex",
)


@dataclass(frozen=True)
class Documented:
    """A command line: its page and block's line, its words, and and why tests don't run it, "" where they do."""

    page: str
    line: int
    words: tuple[str, ...]
    excuse: str

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
                found.append(Documented(page, line, tuple(words), block["why"] or ""))
    return found


COMMANDS = [found for page in PAGES for found in documented(page, (REPOSITORY / page).read_text("utf-8"))]
OURS = [found for found in COMMANDS if found.ours]


@cache
def command_line() -> Any:
    """The real command line; building it takes a moment."""
    return typer.main.get_command(app)


def parsed(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The command's name, such as "judge score", and its parameters' values, as the real command line reads them."""
    command = command_line()
    names: list[str] = []
    context = command.make_context("roboalign", list(words[1:]))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        context = command.make_context(name, rest, parent=context)
    return " ".join(names), context.params


@cache
def shown_files() -> dict[str, str]:
    """Profiles whose text the documentation shows, by their names; the first line of each names it."""
    texts = [(REPOSITORY / page).read_text("utf-8") for page in PAGES]
    blocks = [block for text in texts for block in BLOCK.finditer(text) if block["kind"] == "yaml"]
    named = [
        (match[1], block["text"])
        for block in blocks
        if (match := re.match(r"# (\S+\.yaml)\n", block["text"]))
    ]
    return {**dict(named), "nodes.yaml": "nodes: [{cpus: 64, gpus: 8, memory_gb: 512}]\n"}


def example_files(folder: Path, episodes: int = 0, frames: int = 6) -> None:
    """What the examples name: the profiles, and a data set of so many episodes and frames an episode."""
    for name, text in shown_files().items():
        (folder / name).write_text(text)
    (folder / "cluster_configs").symlink_to(REPOSITORY / "cluster_configs")
    if episodes:
        write_lerobot_v2(folder / "path/to/dataset", [frames] * episodes)


def is_run(command: Documented) -> bool:
    """Whether one of the tests below runs it."""
    if not command.ours or command.excuse:
        return False
    name = "--help" if "--help" in command.words else parsed(command.words)[0]
    return name in RUN or command.page == "README.md"


def test_the_documentation_is_found() -> None:
    assert {found.page for found in OURS} >= {
        "README.md",
        "docs/chaos.md",
        "docs/clusters.md",
        "docs/judge.md",
    }
    assert len(OURS) > 40


def test_what_no_test_runs_is_marked() -> None:
    assert [str(found) for found in COMMANDS if not found.excuse and not is_run(found)] == []


def test_no_mark_stands_without_need() -> None:
    """A cheap command is left out only where it needs something that the tests lack."""
    for page in PAGES:
        marked = [found for found in COMMANDS if found.page == page and found.excuse]
        needed = {
            found.line
            for found in marked
            if not found.ours or found.excuse.startswith("needs ") or parsed(found.words)[0] not in RUN
        }
        text = (REPOSITORY / page).read_text("utf-8")
        assert text.count("<!-- not run by tests:") == len(needed), page


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
    example_files(tmp_path, episodes=8)
    monkeypatch.chdir(tmp_path)
    for command in OURS:
        if command.page != page or command.excuse:
            continue
        name = "--help" if "--help" in command.words else parsed(command.words)[0]
        if name not in RUN:
            continue
        code = run(list(command.words[1:]))
        out, told = capsys.readouterr()
        if name == "plan" and "--cluster" not in command.words:
            # This machine need not have room; it is then said in one line.
            assert code in (0, 2), told
            assert "Traceback" not in told
        else:
            assert code == 0, f"{command}\n{told}"
        assert out or code or "--out" in command.words


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readmes_way_to_an_aligned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Convert, plan, pre-train, align and evaluate, as README has them, with fewer steps."""
    example_files(tmp_path, episodes=48, frames=48)  # two of them are held out, of 40 none
    monkeypatch.chdir(tmp_path)
    for command in (found for found in OURS if found.page == "README.md"):
        settings = (
            [] if command.words[1] in ("episodes", "plan") else [f"--set={setting}" for setting in SHORT]
        )
        code = run([*command.words[1:], *settings])
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    assert (tmp_path / "runs/mine_aligned/aligned/model.safetensors").is_file()


def test_readme_begins_with_its_two_commands_and_ci_runs_the_tests() -> None:
    first = [found.words for found in COMMANDS if found.page == "README.md"][:2]
    assert first == [("make", "demo"), ("make", "test")]
    assert re.search(r"^make test\b", (REPOSITORY / ".ci/run").read_text("utf-8"), re.M)


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
        Documented("x.md", 2, ("roboalign", "plan", "demo", "--json"), ""),
        Documented("x.md", 8, ("make", "it"), "it is slow"),
    ]
