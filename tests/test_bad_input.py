"""Bad input of every kind, through the command line: one line on stderr, exit code 2, nothing written.

Episode sources and stores have a table of their own beside their tests.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refused

from roboalign_ray.config.loading import dump_yaml


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy job: store, weights and `tiny.yaml`."""
    from tiny_job import make_tiny_job

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(dump_yaml(make_tiny_job(folder)))
    return folder


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def nothing(folder: Path) -> None:
    """The command line alone is wrong."""


def several(**files: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)

    return prepare


# kind: (what stands in the folder, the command, what the line must say)
CONFIG_CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "unknown profile": (nothing, "plan dmeo", "unknown profile 'dmeo'; did you mean 'demo'?"),
    "missing profile file": (nothing, "plan job.yaml", "no such profile file: job.yaml"),
    "invalid YAML": (write("job.yaml", "seed: [1\n"), "plan job.yaml", "is not valid YAML"),
    "not a mapping": (write("job.yaml", "- seed\n"), "plan job.yaml", "holds no mapping"),
    "binary file": (
        lambda folder: (folder / "job.yaml").write_bytes(b"\xff\xfe\x00\x80") and None,
        "plan job.yaml",
        "job.yaml: cannot be read",
    ),
    "key twice": (
        write("job.yaml", "seed: 1\nseed: 2\n"),
        "plan job.yaml",
        "job.yaml:2: key 'seed' stands twice",
    ),
    "unknown key in a file": (
        write("job.yaml", "alignment:\n  updatess: 5\n"),
        "plan job.yaml",
        "job.yaml:2: unknown key 'alignment.updatess'; did you mean 'alignment.updates'?",
    ),
    "unknown key in an override": (
        nothing,
        "align demo --set alignmnt.updates=5",
        "did you mean 'alignment.updates'?",
    ),
    "wrong type": (
        nothing,
        "align demo --set alignment.updates=many",
        "alignment.updates: expected a valid integer, got 'many'",
    ),
    "value out of range": (nothing, "align demo --set alignment.clip=-1", "expected greater than 0, got -1"),
    "unknown choice": (nothing, "plan demo --set rollout.refresh.policy=sww", "expected 'none', 'swr'"),
    "override without a value": (nothing, "plan demo --set alignment.updates", "is not key=value"),
    "override that is not YAML": (nothing, "plan demo --set seed=[1", "is not valid YAML"),
    "extends in a circle": (
        several(a="extends: b.yaml\n", b="extends: a.yaml\n"),
        "plan a.yaml",
        "extends runs in a circle",
    ),
    "extends nothing known": (write("job.yaml", "extends: demmo\n"), "plan job.yaml", "did you mean 'demo'?"),
    "grid that does not divide": (nothing, "plan demo --set tokenizer.width=60", "64x60 is not divisible by"),
    "minibatch that does not divide": (
        nothing,
        "align demo --set alignment.minibatch_prompts=3",
        "is not a multiple of minibatch_prompts 3",
    ),
    "heads that do not divide": (nothing, "plan demo --set world_model.heads=7", "do not divide"),
    "job that fits nowhere": (
        write("nodes.yaml", "nodes: [{cpus: 64, gpus: 7}]\n"),
        "plan node_8gpu --cluster nodes.yaml --json",
        "GPU: 8 needed, 7 in the cluster",
    ),
    "resource nobody has": (
        write("nodes.yaml", "nodes: [{cpus: 4}]\n"),
        "plan demo --cluster nodes.yaml --set cluster.scorer.resources.arm=1",
        "arm: 1 needed, 0 in the cluster",
    ),
    "one and a half GPUs": (
        write("nodes.yaml", "nodes: [{cpus: 4}]\n"),
        "plan demo --cluster nodes.yaml --set cluster.learner.num_gpus=1.5",
        "num_gpus 1.5 is neither a fraction",
    ),
    "cluster file without nodes": (
        write("nodes.yaml", "cpus: 4\n"),
        "plan demo --cluster nodes.yaml",
        "nodes.yaml: holds no list of nodes",
    ),
    "missing cluster file": (nothing, "plan demo --cluster nodes.yaml", "nodes.yaml: no such file"),
    "unknown command": (nothing, "algin demo", "No such command 'algin'. Did you mean 'align', 'agent'?"),
    "misspelt command": (nothing, "rolout", "No such command 'rolout'. Did you mean 'rollout'?"),
    "misspelt command of a group": (nothing, "episodes inspct x", "see 'roboalign episodes --help'"),
    "number out of range": (nothing, "rollout --horizon 0", "see 'roboalign rollout --help'"),
    "unknown option": (nothing, "plan demo --jsn", "No such option: --jsn"),
    "missing argument": (nothing, "plan", "Missing argument"),
    "unknown stage": (nothing, "pretrain demo --stage all", "'all' is not one of"),
    "store that is not there": (
        nothing,
        "pretrain demo --set episodes.store=nowhere",
        "nowhere: no such folder; make one with: roboalign episodes generate, or roboalign episodes convert",
    ),
    "weights that are not there": (
        nothing,
        "evaluate demo --set world_model_weights=nowhere",
        "nowhere: no such folder; set world_model_weights to a folder",
    ),
    "world model to measure that is not there": (
        nothing,
        "evaluate demo --model nowhere",
        "nowhere: no such folder; give a world model folder",
    ),
    "simulated store that is not there": (
        nothing,
        "plan demo_diffusion",
        "make it with: roboalign episodes generate runs/two_views --profile demo_diffusion, and set "
        "episodes.store=runs/two_views",
    ),
    "simulated store of a profile of one's own": (
        write("job.yaml", "extends: demo_diffusion\nname: mine\nepisodes: {store: two_views}\n"),
        "plan job.yaml",
        "two_views --profile PROFILE",
    ),
    "nothing held out": (
        nothing,
        "evaluate demo --set episodes.held_out_fraction=1e-9",
        "no episode is held out at a share of 1e-09; convert with a larger --held-out and set "
        "episodes.held_out_fraction to the same",
    ),
    "policy that cannot be trained with": (nothing, "align demo --set rollout.refresh.policy=sinks", "sinks"),
    "options that contradict": (nothing, "demo --resume --fresh", "--resume and --fresh exclude each other"),
    "folder with other things in it": (
        lambda folder: (
            (folder / "mine").mkdir() or ((folder / "mine" / "notes.txt").write_text("keep") and None)
        ),
        "demo --fresh --out mine",
        "holds 'notes.txt', which no run wrote",
    ),
    "run folder in use": (
        lambda folder: (folder / "taken" / "aligned").mkdir(parents=True),
        "align demo --out taken",
        "holds an alignment run already; add --resume",
    ),
}


@pytest.mark.parametrize("kind", CONFIG_CASES)
def test_bad_input_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, command, expected = CONFIG_CASES[kind]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert expected in refused(command.split(), tmp_path, capsys)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def scribble(path: Path) -> None:
    path.write_bytes(b"\x00" * 64)


FILE_CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "torn tokenizer weights": (lambda f: truncate(f / "tokenizer/tokenizer.safetensors"), "", "tokenizer"),
    "torn world model weights": (lambda f: truncate(f / "world_model/model.safetensors"), "", "world_model"),
    "world model of noise": (lambda f: scribble(f / "world_model/model.safetensors"), "", "world_model"),
    "world model without layout": (lambda f: (f / "world_model/layout.json").unlink(), "", "layout.json"),
    "weights of another action space": (
        nothing,
        " --set world_model.action_dims=3",
        "was made for another layout (action_tokens 2 != 3)",
    ),
    "weights of another binning": (nothing, " --set episodes.action_bins=16", "action_bins 8 != 16"),
    "store without statistics": (lambda f: (f / "store/statistics.json").unlink(), "", "statistics.json"),
    "horizon longer than any episode": (nothing, " --set evaluation.horizon=500", "501 frames"),
}


@pytest.mark.parametrize("kind", FILE_CASES)
def test_damaged_files_are_refused_in_one_line(
    kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, arguments, expected = FILE_CASES[kind]
    folder = Path(shutil.copytree(tiny, tmp_path / "job"))
    prepare(folder)
    monkeypatch.chdir(folder)
    places = (
        " --set tokenizer_weights=tokenizer --set world_model_weights=world_model --set episodes.store=store"
    )
    command = f"evaluate tiny.yaml --quiet --set evaluation.horizon=4{places}{arguments}"
    assert expected in refused(command.split(), folder, capsys)


@pytest.mark.parametrize("damage", [truncate, scribble, Path.unlink])
def test_damaged_checkpoints_name_the_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    from roboalign_ray.foundation.failures import UserError
    from roboalign_ray.foundation.storage import checkpoints

    folder = checkpoints.save(tmp_path, 1, lambda path: (path / "model.bin").write_bytes(b"w" * 500) and None)
    damage(folder / "model.bin")
    with pytest.raises(UserError, match=r"model\.bin: .*; use an earlier checkpoint"):
        checkpoints.load(folder)
