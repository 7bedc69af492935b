"""Planning in world models: Gymnasium environments, and planners over them.

Importing this package registers the environments. It loads gymnasium, and neither torch nor a world model.

    import gymnasium
    import roboalign_ray.planning

    env = gymnasium.make("RoboAlign/WorldModel-v0", world_model="shipped")

`gymnasium.make("roboalign_ray.planning:RoboAlign/WorldModel-v0")` needs no import of its own.
"""

import gymnasium

ENVIRONMENT = "RoboAlign/WorldModel-v0"

if ENVIRONMENT not in gymnasium.registry:
    gymnasium.register(
        ENVIRONMENT,
        entry_point="roboalign_ray.planning.env:WorldModelEnv",
        vector_entry_point="roboalign_ray.planning.vector_env:WorldModelVectorEnv",
    )
