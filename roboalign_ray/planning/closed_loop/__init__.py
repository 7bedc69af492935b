"""Planning in closed loop: plan in a world model, act in the simulator, look, plan again.

Scene ──frames, actions──► Agent ──decision──► Scene     at the world model's rate
                           └─ planner over dynamics: the world model, or the true simulator for the ceilings
"""
