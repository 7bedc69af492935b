"""Plan in the shipped world model: find actions that lead to a goal image, carry them out, and plan again.

python examples/plan.py
python examples/plan.py candidates=16 iterations=2
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np

import roboalign_ray.planning  # registers the environments
from roboalign_ray import open_store, plan_actions
from roboalign_ray.episodes.video import encode_browser_video
from roboalign_ray.planning.costs import GoalTerm

if __name__ == "__main__":
    settings = {name: int(value) for name, value in (word.split("=") for word in sys.argv[1:])}
    episode = open_store().read("metaworld/drawer-close/0/expert")
    env = gymnasium.make(
        roboalign_ray.planning.ENVIRONMENT,
        image=episode.view()[0],
        instruction=episode.instruction,
        render_mode="rgb_array",
    )
    env.reset(seed=0)
    frames, warm = [env.render()], None
    goal = GoalTerm(episode.view()[-1][None])
    search = {
        "candidates": 32,
        "iterations": 2,
        "knots": [3, 3, 3, 1],
        "straight": 0.25,
        "elites": 5,
        **settings,
    }
    for number in range(3):
        plan = plan_actions(env, "cem", horizon=5, seed=number, warm=warm, cost=goal, **search)
        print(f"plan {number}: cost {plan.cost:.4f} from {plan.evaluated} candidates in {plan.seconds:.1f} s")
        for action in plan.actions[:2]:
            env.step(action)
            frames.append(env.render())
        warm = plan.rest(2)
    out = Path("runs/plan.mp4")
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(encode_browser_video(np.stack(frames), fps=5, scale=4))
    print(f"{len(frames)} frames: {out}")
