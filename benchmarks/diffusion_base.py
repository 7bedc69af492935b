"""How good a diffusion world model is on held-out windows, per view, by the metrics of `roboalign evaluate`.

    one step          every n-th frame from up to four real frames, with true and with shuffled actions
    T frames          rollouts from one real frame
    copying           the last frame, or the first one

    python benchmarks/diffusion_base.py runs/diffusion/world_model --store runs/two_views
    python benchmarks/diffusion_base.py runs/diffusion --training --store runs/two_views   # its newest checkpoint

`--pictures FOLDER` writes one picture a window: real frames above, predicted ones below, for every view.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from roboalign_ray.config import EpisodesConfig, EvaluationConfig
from roboalign_ray.config.loading import load_job
from roboalign_ray.episodes.action_card_of_store import fitted_action_card
from roboalign_ray.episodes.store import open_store
from roboalign_ray.episodes.windows import Window, WindowSpec, held_out_windows
from roboalign_ray.foundation.storage.state_files import read_state
from roboalign_ray.metrics.frame_metrics import FRAME_METRICS, clip_metrics
from roboalign_ray.metrics.perceptual import load_lpips
from roboalign_ray.world_model.diffusion.action_scaling import ActionScaling
from roboalign_ray.world_model.diffusion.conditioning import clip_to_bytes, inputs_of
from roboalign_ray.world_model.diffusion.denoising import sample_clip
from roboalign_ray.world_model.diffusion.files import load_denoiser
from roboalign_ray.world_model.diffusion.network import Denoiser

SHOWN = (0, 3, 6, 10, 15, 20, 25, 29)  # frames of a picture
HISTORY = 3  # real frames before the last known one, as in `roboalign evaluate`


class Model:
    """A denoiser that predicts clips of one frame.

    Args:
        network, scaling: the model.
        scale: of residuals.
        steps: denoising steps.
    """

    def __init__(self, network: Denoiser, scaling: ActionScaling, scale: float, steps: int) -> None:
        self.network, self.scaling, self.scale, self.steps = network.eval(), scaling, scale, steps

    def next(self, frames: np.ndarray, reference: np.ndarray, actions: np.ndarray, seed: int) -> np.ndarray:
        """uint8 [B, 1, V, H, W, 3] after frames [B, m, V, H, W, 3]; actions [B, m, A]."""
        given = [torch.from_numpy(np.ascontiguousarray(x)) for x in (frames, reference, actions)]
        inputs = inputs_of(*given, self.network.config, self.scaling)
        noise = torch.randn(inputs.newest.shape, generator=torch.Generator().manual_seed(seed))
        return clip_to_bytes(
            sample_clip(self.network, noise, inputs, steps=self.steps, scale=self.scale)
        ).numpy()

    def rollout(self, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """uint8 [B, T, V, H, W, 3] from start frames [B, V, H, W, 3]; actions [B, T, A]."""
        frames = start[:, None]
        for t in range(actions.shape[1]):
            frames = np.concatenate([frames, self.next(frames, start, actions[:, : t + 1], t)], axis=1)
        return frames[:, 1:]


def trained(
    run: Path, store: str, episodes: EpisodesConfig, profile: str
) -> tuple[Denoiser, ActionScaling, float]:
    """The weight average of a training's newest checkpoint."""
    config = load_job(profile).diffusion
    states = sorted(
        run.glob("checkpoints/world_model/checkpoint*/state.safetensors"), key=lambda p: p.stat().st_mtime
    )
    state = read_state(states[-1])["trainer"]
    network = Denoiser(config.denoiser)
    average = {
        name.removeprefix("module."): value for name, value in state["average"].items() if "module." in name
    }
    network.load_state_dict(average)
    print(f"step {state['steps_done']} of {config.training.steps}")
    return (
        network,
        ActionScaling.from_card(fitted_action_card(open_store(store), episodes)),
        config.noise.residual_scale,
    )


def one_step(model: Model, windows: list[Window], every: int) -> dict[str, np.ndarray]:
    """Predictions uint8 [windows, n, V, H, W, 3]: "predicted", "shuffled", "copied", and "real"."""
    rng = np.random.default_rng(0)
    pool = rng.permutation(np.concatenate([window.actions[:-1] for window in windows]))
    found: dict[str, list[np.ndarray]] = {"predicted": [], "shuffled": [], "copied": [], "real": []}
    for number, window in enumerate(windows):
        horizon = len(window.frames) - 1
        mixed = pool[number * horizon : (number + 1) * horizon]
        steps = range(0, horizon, every)
        rows: dict[str, list[np.ndarray]] = {name: [] for name in found}
        for step in steps:
            first = max(0, step - HISTORY)
            known, done = window.frames[None, first : step + 1], window.actions[None, first : step + 1]
            other = done.copy()
            other[0, -1] = mixed[step]
            for name, actions in (("predicted", done), ("shuffled", other)):
                rows[name].append(model.next(known, known[:, 0], actions, step)[0, 0])
            rows["copied"].append(window.frames[step])
            rows["real"].append(window.frames[step + 1])
        for name, frames in rows.items():
            found[name].append(np.stack(frames))
    return {name: np.stack(frames) for name, frames in found.items()}


def measured(
    made: np.ndarray, windows: list[Window], real: np.ndarray, lpips, config: EvaluationConfig
) -> dict:
    """Means per view of frames [windows, n, V, H, W, 3]."""
    result = {}
    for view in range(made.shape[2]):
        clips = [
            clip_metrics(
                made[n : n + 1, :, view], real[n, :, view], windows[n].frames[0, view], lpips, config
            )
            for n in range(len(windows))
        ]
        means = {name: float(np.nanmean([clip.per_frame[name] for clip in clips])) for name in FRAME_METRICS}
        means["freeze"] = float(np.nanmean([clip.freeze_rate for clip in clips]))
        result[view] = means
    return result


def picture(real: np.ndarray, made: np.ndarray, path: Path) -> None:
    """Frames [T, V, H, W, 3] as rows: real and made, view by view."""
    rows = [
        np.concatenate(list(clip[[t for t in SHOWN if t < len(clip)], view]), axis=1)
        for view in range(real.shape[1])
        for clip in (real, made)
    ]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--training", action="store_true", help="folder is a run under way")
    parser.add_argument("--profile", default="demo_diffusion", help="of the run under way")
    parser.add_argument("--store", required=True)
    parser.add_argument("--views", nargs="+", default=["front", "wrist"])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=30)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    episodes = EpisodesConfig(store=args.store, views=tuple(args.views))
    if args.training:
        network, scaling, scale = trained(args.folder, args.store, episodes, args.profile)
    else:
        network, described = load_denoiser(args.folder)
        scaling, scale = described.scaling, described.noise.residual_scale
    model = Model(network, scaling, scale, args.steps)
    spec = WindowSpec(args.horizon + 1, stride=episodes.frame_stride, views=episodes.views)
    windows = held_out_windows(open_store(args.store), spec, args.windows, completing=0.5)
    lpips, config = load_lpips(), EvaluationConfig()
    began = time.process_time()
    single = one_step(model, windows, args.every)
    rows = {
        name: measured(single[name], windows, single["real"], lpips, config)
        for name in ("predicted", "shuffled", "copied")
    }
    real = np.stack([window.frames[1:] for window in windows])
    rolled = model.rollout(
        np.stack([w.frames[0] for w in windows]), np.stack([w.actions[:-1] for w in windows])
    )
    rows[f"T = {args.horizon}"] = measured(rolled, windows, real, lpips, config)
    still = np.broadcast_to(np.stack([w.frames[:1] for w in windows]), real.shape)
    rows["first frame copied"] = measured(still, windows, real, lpips, config)
    for name, per_view in rows.items():
        for view, means in per_view.items():
            shown = " ".join(f"{key} {value:.4g}" for key, value in means.items())
            print(f"{name:20} {args.views[view]:6} {shown}")
    print(json.dumps({"cpu_seconds": round(time.process_time() - began), "rows": rows}))
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        for number in range(len(windows)):
            picture(real[number], rolled[number], args.pictures / f"{number:02d}.png")


if __name__ == "__main__":
    main()
