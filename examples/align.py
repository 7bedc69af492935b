"""Align the shipped world model and look at what came of it. Takes about five minutes on two CPU cores.

python examples/align.py
python examples/align.py alignment.updates=20
"""

import sys

from roboalign_ray import align

if __name__ == "__main__":
    result = align("demo", *sys.argv[1:], out="runs/example")
    updates, rewards = result.curves["held_out/reward_mean"]
    for update, reward in zip(updates, rewards, strict=True):
        print(f"after {update:3d} updates: held-out reward {reward:.3f}")
    print(f"aligned model: {result.model}")
