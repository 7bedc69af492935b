"""The demo on a diffusion world model of two views: its report has every view's curves, windows won and videos."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
from tiny_diffusion_job import VIEWS, make_diffusion_job

from roboalign_ray.episodes.video import decode_video
from roboalign_ray.pipelines.evaluate.demo import run_demo
from roboalign_ray.pipelines.evaluate.job import make_bench

COMMAND = ["roboalign", "demo", "tiny.yaml"]


def test_the_demo_reports_every_view(ray_cluster: None, tmp_path: Path) -> None:
    job, out = make_diffusion_job(tmp_path / "job"), tmp_path / "out"
    summary = run_demo(job, out, command=COMMAND, quiet=True)
    assert summary == json.loads((out / "summary.json").read_text())
    assert 0 <= summary["before_after"]["LPIPS"]["wins"] <= 1
    page = (out / "report.html").read_text(encoding="utf-8")
    told = re.sub(r"<[^>]+>", " ", page)
    for shown in (
        "aligned by DiffusionNFT, rewarded for fidelity",
        "32×32, 2 views",
        "1 frames each, after up to 3 self-generated frames",
        "View by view",
        "after against before",
        *(f"{metric}, {view}" for metric in ("PSNR, dB ↑", "SSIM ↑", "LPIPS ↓") for view in VIEWS),
    ):
        assert shown in " ".join(told.split()), shown
    assert "temperature" not in told.split("Settings")[0]
    videos = re.findall(r'<video src="data:video/mp4;base64,([^"]+)"', page)
    assert len(videos) == job.evaluation.episodes
    shown = decode_video(base64.b64decode(videos[0]))
    scale = 8  # views of 32 pixels are enlarged to about 256
    assert shown.shape[0] == job.evaluation.horizon
    assert abs(shown.shape[1] - 65 * scale) <= 1
    assert abs(shown.shape[2] - (4 * 32 + 3) * scale) <= 1
    # Panel "real": below is front upside down, as in the episodes.
    real = shown[0, :, 33 * scale : 65 * scale].astype(int)
    front, below = real[: 32 * scale], real[33 * scale : 65 * scale]
    assert np.abs(front[::-1] - below).mean() < 6


def test_a_measurement_knows_no_exploration(tmp_path: Path) -> None:
    """The bench's samples of one window are those that the true actions give."""
    job = make_diffusion_job(tmp_path)
    model = Path(job.world_model_weights)
    quiet = job.rollout.diffusion.without_exploration()
    exact = job.model_copy(update={"rollout": job.rollout.model_copy(update={"diffusion": quiet})})
    frames = []
    for config in (job, exact):
        bench = make_bench(config, horizon=4, episodes=1, model=model)
        opened = bench.model(model)
        frames.append(opened.decode(opened.rollout([bench.windows[0].prompt], [(1, 2)])[0]))
    np.testing.assert_array_equal(*frames)
    assert job.rollout.diffusion.action_noise > 0
