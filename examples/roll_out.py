"""Roll out the shipped world model with actions of your own and write an mp4.

python examples/roll_out.py
"""

from pathlib import Path

import numpy as np

from roboalign_ray import open_store, open_world_model, roll_out
from roboalign_ray.episodes.video import encode_browser_video

if __name__ == "__main__":
    episode, model = open_store().read("metaworld/drawer-open/0/expert"), open_world_model()
    actions = np.tile(np.float32([0.0, 0.03, -0.02, -1.0]), (20, 1))  # metres per frame; gripper open
    frames = roll_out(model, episode.view()[0], actions, seeds=(0, 1))
    side_by_side = np.concatenate([frames[0, :, 0], frames[1, :, 0]], axis=2)
    out = Path("runs/roll_out.mp4")
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(encode_browser_video(side_by_side, fps=5, scale=4))
    print(f"{len(side_by_side)} frames: {out}")
