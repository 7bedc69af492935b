"""Labels from the simulator's state: poses, contacts, penetration."""

from __future__ import annotations

from typing import Any

import numpy as np

# Bodies that are attached to the world and are neither robot nor object.
_FIXED_BODIES = {"world", "tablelink", "RetainingWall", "mocap"}
_ROBOT_ROOT = "base"
_HAND = "hand"


class LabelReader:
    """Reads the labels of one environment; build it once, call `read` once per frame.

    Args:
        env: a Meta-World environment.
    """

    def __init__(self, env: Any) -> None:
        import mujoco

        self._mujoco, self._env = mujoco, env
        model = env.model
        parents = model.body_parentid
        names = [model.body(body).name for body in range(model.nbody)]
        kinds = np.zeros(model.nbody, dtype=np.int8)  # 0 fixed, 1 arm, 2 hand, 3 object
        for body in range(1, model.nbody):
            if names[body] == _HAND:
                kinds[body] = 2
            elif parents[body] != 0:
                kinds[body] = kinds[parents[body]]
            elif names[body] == _ROBOT_ROOT:
                kinds[body] = 1
            elif names[body] not in _FIXED_BODIES:
                kinds[body] = 3
        self._geom_kind = kinds[model.geom_bodyid]
        self._geom_root = model.body_rootid[model.geom_bodyid]

    def read(self) -> dict[str, np.ndarray]:
        """The labels of the current state.

        Returns:
            "object_position", "target_position", "gripper_position" [3] metres; "gripper_opening" [] in [0, 1];
            "contact" [] bool, hand touches an object; "contact_force" [] newtons, sum of normal forces between hand
            and objects; "penetration" [] metres, deepest overlap of hand or object with anything but itself.
        """
        env = self._env
        contact, force, depth = self._contacts()
        goal = env._target_pos
        return {
            "object_position": np.asarray(env._get_pos_objects(), dtype=np.float32)[:3],
            "target_position": np.asarray(np.full(3, np.nan) if goal is None else goal, dtype=np.float32)[:3],
            "gripper_position": np.asarray(env.tcp_center, dtype=np.float32),
            "gripper_opening": np.asarray(env._get_curr_obs_combined_no_goal()[3], dtype=np.float32),
            "contact": np.asarray(contact, dtype=bool),
            "contact_force": np.asarray(force, dtype=np.float32),
            "penetration": np.asarray(depth, dtype=np.float32),
        }

    def _contacts(self) -> tuple[bool, float, float]:
        model, data = self._env.model, self._env.data
        wrench = np.zeros(6)
        touched, force, depth = False, 0.0, 0.0
        for number in range(data.ncon):
            pair = data.contact[number]
            kinds = (self._geom_kind[pair.geom1], self._geom_kind[pair.geom2])
            # Parts of one mechanism (the robot, a window and its frame) overlap by design.
            one_mechanism = self._geom_root[pair.geom1] == self._geom_root[pair.geom2]
            if max(kinds) >= 2 and not one_mechanism:
                depth = max(depth, -float(pair.dist))
            if sorted(kinds) == [2, 3]:
                self._mujoco.mj_contactForce(model, data, number, wrench)
                # Pairs within the contact margin are listed too; only those with a force are in contact.
                touched = touched or wrench[0] > 0
                force += float(wrench[0])
        return touched, force, depth
