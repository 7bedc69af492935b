"""LPIPS against the official figures and against the official package's own computation."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.metrics import downloads as assets
from roboalign_ray.metrics import perceptual
from roboalign_ray.metrics.lpips_backbone import LPIPS_BACKBONES, Backbone, backbone_file
from roboalign_ray.metrics.perceptual import load_lpips

OFFICIAL = {"alex": (0.722, 0.138), "vgg": (0.569, 0.422)}


def _images(count: int = 2, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBOALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_official_example_distances(network: str, real_data: Path) -> None:
    if backbone_file(network) is None:
        pytest.skip("LPIPS backbones are not on this machine: roboalign assets fetch")
    folder = real_data / "lpips_examples"
    ref, p0, p1 = (
        torch.from_numpy(np.array(Image.open(folder / f"{name}.png").convert("RGB"))).permute(2, 0, 1)[None]
        / 255
        for name in ("ex_ref", "ex_p0", "ex_p1")
    )
    lpips = load_lpips(network)
    assert lpips.real
    assert lpips.label == f"LPIPS-{network}"
    assert (lpips(ref, p0).item(), lpips(ref, p1).item()) == pytest.approx(OFFICIAL[network], abs=6e-4)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_equals_official_package_over_the_same_backbone(network: str, no_backbones: Path) -> None:
    """Any backbone will do to check the computation, so this needs no download."""
    import lpips as official_package

    official = official_package.LPIPS(net=network, pnet_rand=True, verbose=False)
    official_map = official_package.LPIPS(net=network, pnet_rand=True, spatial=True, verbose=False)
    ours = load_lpips(network)
    for reference in (official, official_map):
        theirs = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
        for convolution, source in zip(theirs, ours.backbone.convolutions, strict=True):
            convolution.load_state_dict(source.state_dict())
    a, b = _images(seed=1), _images(seed=2)
    expected = official(a, b, normalize=True).flatten()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-7)
    expected_map = official_map(a, b, normalize=True).squeeze(1)
    torch.testing.assert_close(ours.spatial(a, b), expected_map, rtol=1e-4, atol=1e-7)
    both = ours.both(a, b)
    torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(both[1], expected_map, rtol=1e-4, atol=1e-7)


def test_gradient_reaches_the_images_and_is_finite_on_flat_ones() -> None:
    lpips = load_lpips("alex")
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    lpips(image, _images(1)).sum().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_absent_backbone_is_labelled_and_repeatable(no_backbones: Path) -> None:
    first, second = load_lpips("alex"), load_lpips("alex")
    assert not first.real
    assert first.label == "random-LPIPS-alex (backbone not available)"
    a, b = _images(seed=3), _images(seed=4)
    torch.testing.assert_close(first(a, b), second(a, b), rtol=0, atol=0)
    assert (first(a, a) == 0).all()


def test_torchvision_files_in_the_hub_cache_are_used(no_backbones: Path) -> None:
    """torchvision names its layers features.N; the numbers N skip activations and pooling."""
    backbone = Backbone("alex")
    state = {}
    for number, convolution in zip((0, 3, 6, 8, 10), backbone.convolutions, strict=True):
        state[f"features.{number}.weight"] = convolution.weight
        state[f"features.{number}.bias"] = convolution.bias
    state["classifier.1.weight"] = torch.zeros(2, 2)
    checkpoints = no_backbones / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(state, checkpoints / "alexnet-owt-7be5be79.pth")
    loaded = load_lpips("alex")
    assert loaded.real
    for mine, theirs in zip(loaded.backbone.convolutions, backbone.convolutions, strict=True):
        torch.testing.assert_close(mine.weight, theirs.weight)


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        (torch.rand(1, 3, 16, 64), torch.rand(1, 3, 16, 64), "too small"),
        (torch.rand(1, 3, 64, 64), torch.rand(2, 3, 64, 64), "images are"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
            "floating",
        ),
    ],
)
def test_bad_images_are_told_in_one_line(a: torch.Tensor, b: torch.Tensor, word: str) -> None:
    with pytest.raises(UserError, match=word):
        load_lpips("alex")(a, b)


def test_unknown_network() -> None:
    with pytest.raises(UserError, match="use 'alex' or 'vgg'"):
        perceptual.load_lpips("resnet")  # type: ignore[arg-type]


def _archive(folder: Path) -> tuple[Path, dict]:
    """An archive laid out like the published one, with arrays of our own."""
    rng = np.random.default_rng(0)
    tree = {"AlexNet_0": {}, "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 64, 1), np.float32)}}}
    backbone = Backbone("alex")
    for index, convolution in enumerate(backbone.convolutions):
        out, into, height, width = convolution.weight.shape
        tree["AlexNet_0"][f"Conv_{index}"] = {
            "kernel": rng.normal(size=(height, width, into, out)).astype(np.float32),
            "bias": rng.normal(size=out).astype(np.float32),
        }
    data = pickle.dumps(tree, protocol=3)
    path = folder / "weights.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("weights/alexnet.ckpt")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return path, tree


def test_fetch_converts_once_and_checks_the_sum(no_backbones: Path) -> None:
    import dataclasses
    import hashlib

    path, tree = _archive(no_backbones)
    source = dataclasses.replace(
        LPIPS_BACKBONES,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        members={"weights/alexnet.ckpt": "lpips-alex.safetensors"},
    )
    assert assets.fetch(source, archive=path)
    assert not assets.fetch(source, archive=path)
    loaded = load_lpips("alex").backbone.convolutions
    for index, convolution in enumerate(loaded):
        kernel = tree["AlexNet_0"][f"Conv_{index}"]["kernel"]
        np.testing.assert_array_equal(convolution.weight.detach().numpy(), kernel.transpose(3, 2, 0, 1))
    with pytest.raises(UserError, match="SHA-256"):
        assets.fetch(dataclasses.replace(source, sha256="0" * 64), archive=path, force=True)


def test_only_arrays_are_unpickled() -> None:
    np.testing.assert_array_equal(assets.load_arrays(pickle.dumps({"a": np.arange(3)}))["a"], np.arange(3))
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        assets.load_arrays(pickle.dumps({"a": print}))
