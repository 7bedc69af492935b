"""Packing what ships: a teacher as it is, with what its labels are worth; a denoiser in half precision, by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_denoiser import write_tiny_denoiser
from tiny_job import square_episode

from roboalign_ray.config import paths
from roboalign_ray.config.loading import load_job
from roboalign_ray.config.paths import with_absolute_paths
from roboalign_ray.episodes.store import open_store, write_store
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.pipelines.cluster.weight_folders import world_model_folder
from roboalign_ray.pipelines.release.pack_assets import pack, pack_teacher
from roboalign_ray.world_model.diffusion.files import load_denoiser
from roboalign_ray.world_model.registry import open_world_model, write_description

PAIRS = 24


def judged(number: int, shift: float = 0.0) -> JudgedPair:
    frames = np.random.default_rng(number).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    scores = ((0.1 + 0.8 * number / PAIRS + shift) * maxima()).astype(np.float32)
    return JudgedPair(
        f"pair/{number}", f"group/{number}", frames, 5.0, "push the button", scores, "toy", "real"
    )


@pytest.fixture
def material(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run with a model, labels a tenth of every maximum too high, and the pairs."""
    model = tmp_path / "run/teacher/merged"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(range(256)))
    write_pairs([judged(n) for n in range(PAIRS)], tmp_path / "bench")
    DistillationSet(tmp_path / "labels").append(1, [judged(n, 0.1) for n in range(PAIRS)])
    return tmp_path / "run", tmp_path / "labels", tmp_path / "bench"


def test_the_card_tells_how_far_it_agrees(material: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, labels, pairs = material
    sizes = pack_teacher(run, labels, pairs, tmp_path / "assets")
    packed = tmp_path / "assets/teacher"
    assert sizes == {"teacher": sum(file.stat().st_size for file in packed.iterdir())}
    for name in ("config.json", "model.safetensors"):
        assert (packed / name).read_bytes() == (run / "teacher/merged" / name).read_bytes()
    total = next(line for line in (packed / "README.md").read_text().splitlines() if "| total |" in line)
    _, _, _, rank, error, pairwise, most, _ = (cell.strip() for cell in total.split("|"))
    assert (rank.split()[0], error.split()[0], pairwise.split()[0], most) == ("1.000", "1.000", "1.000", "10")


def test_nothing_is_packed_without_a_model_or_labels(
    material: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, labels, pairs = material
    assets = tmp_path / "assets"
    pack_teacher(run, labels, pairs, assets)
    stood = {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no trained teacher here"):
        pack_teacher(tmp_path / "bench", labels, pairs, assets)
    with pytest.raises(UserError, match="absent: no such folder"):
        pack_teacher(run, tmp_path / "absent", pairs, assets)
    write_pairs([judged(PAIRS + 1)], tmp_path / "others")
    with pytest.raises(UserError, match="share no video"):
        pack_teacher(run, labels, tmp_path / "others", assets)
    assert stood == {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}


def trained_denoiser(run: Path) -> Path:
    """A complete pre-training run of a diffusion world model."""
    write_tiny_denoiser(run / "world_model")
    (run / "world_model" / "training.json").write_text('{"steps": 7, "psnr": 24.25}')
    return run


def test_a_denoiser_is_packed_in_half_precision_and_opens_in_single(tmp_path: Path) -> None:
    run, assets = trained_denoiser(tmp_path / "run"), tmp_path / "assets"
    (tmp_path / "evaluation.json").write_text('{"headline": {"one_step_predicted_psnr_db": 27.123}}')
    sizes = pack(run, assets, tmp_path / "evaluation.json")
    packed = assets / "diffusion"
    assert sizes == {"diffusion": sum(file.stat().st_size for file in packed.iterdir())}
    weights = load_file(packed / "model.safetensors")
    (trained, told), (found, told_again) = (load_denoiser(f) for f in (run / "world_model", packed))
    assert told == told_again
    for name, value in trained.state_dict().items():
        assert weights[name].dtype == torch.float16
        assert found.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(found.state_dict()[name], value, rtol=2**-11, atol=2**-25)
    card = (packed / "README.md").read_text()
    for shown in ("roboalign pretrain demo_diffusion", "float16", "| steps | 7 |", "| 27.12 |"):
        assert shown in card, shown


def test_weights_that_half_precision_cannot_hold_leave_what_is_there(tmp_path: Path) -> None:
    run, assets = trained_denoiser(tmp_path / "run"), tmp_path / "assets"
    pack(run, assets)
    stood = {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    weights = load_file(run / "world_model" / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1e6
    save_file(weights, run / "world_model" / "model.safetensors")
    with pytest.raises(UserError, match=f"weight '{name}' has values that float16 cannot hold"):
        pack(run, assets)
    assert stood == {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    write_description(run / "world_model", "mine")
    with pytest.raises(UserError, match="a world model of kind 'mine' does not ship"):
        pack(run, assets)


def test_what_ships_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load_job("demo_diffusion")
    monkeypatch.setattr(paths.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"assets/diffusion: no such folder; train it with: roboalign pre"):
        world_model_folder(job)
    with pytest.raises(UserError, match=r"assets/episodes_two_views: no such folder; make it with: robo"):
        open_store(job.episodes.store)
    pack(trained_denoiser(tmp_path / "run"), tmp_path / "assets")
    write_store([square_episode(0)], tmp_path / "assets" / "episodes_two_views")
    monkeypatch.chdir(tmp_path / "run")  # a name, whatever the folder
    kept = with_absolute_paths(job)
    assert world_model_folder(kept) == tmp_path / "assets" / "diffusion"
    assert open_world_model("shipped_diffusion").card.kind == "diffusion"
    assert len(open_store(kept.episodes.store)) == 1
