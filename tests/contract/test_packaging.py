"""What gets installed: every package and its data from a wheel, and the checkout itself from an editable install.

Both are built without a network and installed into folders of their own, beside the dependencies of this environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LINKED = ("actors", "pipelines", "cluster_configs")  # stand beside the library in the checkout

LOOK_AROUND = """
import json, pkgutil
from pathlib import Path
import roboalign_ray
from roboalign_ray.config.loading import load_job, profile_names
modules = ["roboalign_ray", *(m.name for m in pkgutil.walk_packages(roboalign_ray.__path__, "roboalign_ray."))]
profiles = [load_job(name).name for name in profile_names()]
print(json.dumps({"modules": modules, "folder": str(Path(roboalign_ray.__file__).parent), "profiles": profiles}))
"""


def build(hook: str, folder: Path, source: Path = REPOSITORY) -> Path:
    """Call a hook of the build backend that pyproject.toml names, as pip would."""
    pytest.importorskip("hatchling", reason="the build backend comes with the extra 'dev'")
    code = f"import hatchling.build as b; print(b.{hook}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def install(wheel: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    done = subprocess.run([*command, "--target", str(target), str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def python(site: Path, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code that sees `site` before anything else, and not the checkout's editable install."""
    # -S keeps .pth files (this environment's own editable install among them) out; dependencies come by path.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    prelude = f"import sys, site; sys.path[:0] = [{str(site)!r}]; sys.path += {dependencies!r}; "
    prelude += f"site.addsitedir({str(site)!r})\n"
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-S", "-c", prelude + code], cwd=cwd, env=environment, capture_output=True, text=True
    )


def look_around(site: Path, cwd: Path) -> dict:
    import json

    done = python(site, LOOK_AROUND, cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install(wheel, target)
    return target


def installed_name(tracked: str) -> str:
    """Where a file of the checkout is once it is installed."""
    return f"roboalign_ray/{tracked}" if tracked.split("/")[0] in LINKED else tracked


def expected_modules() -> set[str]:
    names = set()
    for folder in ("roboalign_ray", *LINKED):
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = Path(installed_name(str(path.relative_to(REPOSITORY)))).with_suffix("").parts
            names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_the_wheel_brings_every_module_and_profile(site: Path, tmp_path: Path) -> None:
    seen = look_around(site, tmp_path)
    assert set(seen["modules"]) == expected_modules()
    assert seen["folder"] == str(site / "roboalign_ray")
    assert seen["profiles"] == sorted(
        path.stem for path in (REPOSITORY / "cluster_configs/profiles").iterdir()
    )


def test_the_wheel_brings_every_data_file(wheel: Path) -> None:
    """Whatever git tracks inside the packages (profiles, templates, episodes, weights) is in the wheel."""
    listed = subprocess.run(
        ["git", "ls-files", "--", "roboalign_ray", *LINKED], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {installed_name(name) for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}
    assert tracked <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_brings_nothing_else(wheel: Path) -> None:
    tops = {name.split("/", 1)[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"roboalign_ray"}
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_the_installed_command_answers(site: Path, tmp_path: Path) -> None:
    code = "import sys\nfrom roboalign_ray.pipelines.cli.main import main\nsys.argv = ['roboalign', '--help']\nmain()"
    done = python(site, code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage: roboalign" in done.stdout
    entry_points = next(site.glob("*.dist-info")) / "entry_points.txt"
    assert "roboalign = roboalign_ray.pipelines.cli.main:main" in entry_points.read_text()


def test_an_editable_install_leads_to_the_checkout(tmp_path: Path) -> None:
    wheel = build("build_editable", tmp_path)
    install(wheel, tmp_path / "site")
    seen = look_around(tmp_path / "site", tmp_path)
    assert set(seen["modules"]) == expected_modules()
    assert seen["folder"] == str(REPOSITORY / "roboalign_ray")


def test_an_editable_install_brings_one_import_name(tmp_path: Path) -> None:
    """The checkout's other top-level folders do not become importable by their bare names."""
    install(build("build_editable", tmp_path), tmp_path / "site")
    code = (
        "import importlib.util as u\nprint([n for n in ('actors', 'pipelines', 'tests') if u.find_spec(n)])"
    )
    done = python(tmp_path / "site", code, tmp_path)
    assert done.stdout.split() == ["[]"], done.stderr


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = build("build_sdist", tmp_path)
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    again = build("build_wheel", tmp_path / "again", unpacked)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_this_environment_has_the_command() -> None:
    command = shutil.which("roboalign", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("roboalign_ray is not installed in this environment")
    done = subprocess.run([command, "version", "--json"], capture_output=True, text=True)
    assert done.returncode == 0
    assert '"roboalign-ray"' in done.stdout
