"""Extensions by name: what each of the three ways gives, and the one line of every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roboalign_ray.foundation.failures import HostError, UserError
from roboalign_ray.plugins import KINDS, Registry, import_attribute, is_import_path, lacks

BUILTIN = {"ordered": "collections:OrderedDict", "counter": "collections:Counter"}


def registry(kind: str = "rewards", builtin: dict[str, str] = BUILTIN) -> Registry[type]:
    return Registry(kind, "reward", builtin, lacks("score"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path, as a package's installer leaves one."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, package: str, entries: dict[str, str], kind: str = "rewards") -> None:
    folder = site / f"{package.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"[roboalign_ray.{kind}]", *(f"{name} = {path}" for name, path in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def write(site: Path, module: str, text: str) -> None:
    (site / f"{module}.py").write_text(text)


GOOD = "class Mine:\n    def score(self, inputs):\n        return []\n"


def test_the_three_ways_give_the_class_itself(site: Path) -> None:
    write(site, "plug_three", GOOD)
    install(site, "plug-three", {"smooth": "plug_three:Mine"})
    ours = Registry("rewards", "reward", {"kept": "plug_three:Mine"}, lacks("score"))
    loaded = [ours.load(name) for name in ("kept", "smooth", "plug_three:Mine")]
    assert loaded[0] is loaded[1] is loaded[2]
    assert loaded[0].__name__ == "Mine"
    assert ours.names() == ["kept", "smooth"]


def test_kinds_do_not_mix(site: Path) -> None:
    write(site, "plug_kind", GOOD)
    install(site, "plug-kind", {"smooth": "plug_kind:Mine"}, kind="planners")
    assert "smooth" not in registry().names()
    assert registry("planners").load("smooth").__name__ == "Mine"
    with pytest.raises(ValueError, match="no kind"):
        registry("reward")
    assert len(set(KINDS)) == 7


def test_nothing_is_imported_before_its_name_is_asked_for(site: Path) -> None:
    write(site, "plug_lazy", f"raise SystemExit('{site}')\n")
    install(site, "plug-lazy", {"lazy": "plug_lazy:Mine"})
    assert "lazy" in registry().names()
    with pytest.raises(UserError, match="plug_lazy"):
        registry().load("lazy")


MODULES = {
    "plug_good": GOOD,
    "plug_syntax": "def :\n",
    "plug_raises": "raise RuntimeError('no such device\\nmore')\n",
    "plug_exits": "import sys\nsys.exit(3)\n",
    "plug_needs": "import plug_nowhere\n",
    "plug_wrong": "Mine = 3\nclass Other:\n    pass\n",
    "plug_crowded": "import os\nfrom pathlib import Path\nfrom plug_good import Mine as Foreign\nLIMIT = 3\n"
    "class Helper:\n    pass\nclass Steady:\n    def score(self): ...\nclass Fast:\n    def score(self): ...\n",
    "plug_abstract": "import abc\nclass Mine(abc.ABC):\n    @abc.abstractmethod\n    def score(self): ...\n",
}
MISTAKES = {
    "orderd": "reward.x: unknown reward 'orderd'; did you mean 'ordered'?",
    "zzz": "reward.x: unknown reward 'zzz'; known keys: counter, ordered",
    "plug_nowhere:Mine": "no module 'plug_nowhere'; install its package, or put its folder on PYTHONPATH",
    "plug_good.sub:Mine": "reward.x: there is no module 'plug_good.sub'",
    "plug_good:Mime": "reward.x: module 'plug_good' has no 'Mime'; did you mean 'Mine'?",
    "plug_crowded:Nope": "reward.x: module 'plug_crowded' has no 'Nope'; it has Fast, Steady",
    "plug_wrong:Nope": "module 'plug_wrong' has no 'Nope'; nothing in it would fit",
    "plug_syntax:Mine": "reward.x: module 'plug_syntax' cannot be imported (SyntaxError: invalid syntax",
    "plug_raises:Mine": "cannot be imported (RuntimeError: no such device)",
    "plug_exits:Mine": "module 'plug_exits' cannot be imported (SystemExit: 3)",
    "plug_needs:Mine": "module 'plug_needs' cannot be imported (ModuleNotFoundError: No module named 'plug_nowhere')",
    "plug_wrong:Mine": "reward.x: 'plug_wrong:Mine' is no reward: it is of type int, not a class",
    "plug_wrong:Other": "'plug_wrong:Other' is no reward: it has no method score",
    "plug_abstract:Mine": "'plug_abstract:Mine' is no reward: it leaves score abstract",
    ":Mine": "':Mine' is no import path; write module:attribute, my_pkg.rewards:Mine",
    "plug_good:": "'plug_good:' is no import path",
    "plug/good.py:Mine": "is no import path",
    "plug_good:Mine:more": "is no import path",
    "plug_good:Mine()": "is no import path",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_one_line(name: str, site: Path) -> None:
    for module, text in MODULES.items():
        write(site, module, text)
    with pytest.raises(UserError) as caught:
        registry().load(name, "reward.x")
    line = caught.value.line()
    assert MISTAKES[name] in line
    assert "\n" not in line


def test_a_name_of_two_packages_is_refused_and_both_are_named(site: Path) -> None:
    write(site, "plug_twice", GOOD)
    install(site, "plug-one", {"smooth": "plug_twice:Mine", "ordered": "plug_twice:Mine"})
    install(site, "plug-two", {"smooth": "plug_twice:Mine"})
    with pytest.raises(
        UserError, match=r"'smooth' is registered by plug-(one and by plug-two|two and by plug-one)"
    ):
        registry().load("smooth")
    with pytest.raises(UserError, match="'ordered' is registered by roboalign_ray and by plug-one"):
        registry().load("ordered")


def test_a_name_out_of_a_file_imports_no_module_of_its_choice(site: Path) -> None:
    write(site, "plug_hostile", f"open({str(site / 'ran')!r}, 'w')\n{GOOD}")
    with pytest.raises(UserError, match=re.escape("unknown reward 'plug_hostile:Mine'; known keys")):
        registry().load_registered("plug_hostile:Mine", "model.json: kind")
    assert not (site / "ran").exists()
    registry().load("plug_hostile:Mine")  # the user's own word runs it
    assert (site / "ran").exists()


def test_a_machine_that_fails_is_no_fault_of_the_module(site: Path) -> None:
    write(site, "plug_full", "import errno\nraise OSError(errno.ENOSPC, 'No space left on device')\n")
    with pytest.raises(HostError, match="No space left"):
        import_attribute("plug_full:Mine")


@pytest.mark.parametrize("name", ["a:B", "a.b_1:c", "_a:_B"])
def test_import_paths_are_told_by_their_form(name: str) -> None:
    assert is_import_path(name)
    assert not is_import_path(name.replace(":", "."))
    assert not is_import_path(f"{name} ")
