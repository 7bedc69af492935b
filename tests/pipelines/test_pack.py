"""Packing a trained teacher: the model as it is, and a card that tells what its labels are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.data.label_store import DistillationSet
from roboalign_ray.judge.data.pairs import JudgedPair, write_pairs
from roboalign_ray.judge.rubric import maxima
from roboalign_ray.pipelines.release.pack_assets import pack_teacher

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
