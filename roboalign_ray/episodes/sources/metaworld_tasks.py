"""The simulated tasks and their instructions.

The tasks are chosen so that something visible moves, that the objects differ from task to task, and that the scripted
expert finishes within an episode.
"""

from __future__ import annotations

from roboalign_ray.foundation.failures import UserError, nearest_key

SENTENCES: dict[str, tuple[str, ...]] = {
    "reach": (
        "move the gripper to the red dot",
        "bring the hand to the marked point in the air",
        "reach the red target",
    ),
    "push": (
        "push the puck to the target on the table",
        "slide the red cylinder over to the green dot",
        "shove the puck along the table until it lies on the mark",
    ),
    "pick-place": (
        "pick up the puck and hold it at the target",
        "grasp the red cylinder and lift it to the marked point",
        "take the puck and carry it to the target in the air",
    ),
    "drawer-open": (
        "open the drawer",
        "pull the drawer out by its handle",
        "hook the handle and draw the drawer open",
    ),
    "drawer-close": (
        "close the drawer",
        "push the drawer back in",
        "shut the open drawer",
    ),
    "door-open": (
        "open the door of the safe",
        "pull the door open by its handle",
        "swing the safe's door open",
    ),
    "button-press": (
        "press the red button on the front of the box",
        "push the button in",
        "press the button that faces you",
    ),
    "button-press-topdown": (
        "press the button from above",
        "push the red button on top of the box down",
        "come down onto the button and press it",
    ),
    "window-open": (
        "open the window",
        "slide the window open by its handle",
        "push the window's handle to open it",
    ),
    "window-close": (
        "close the window",
        "slide the window shut",
        "push the handle until the window is closed",
    ),
    "plate-slide": (
        "slide the plate into the goal",
        "push the round plate into the net",
        "shoot the disc into the goal at the back",
    ),
    "handle-press": (
        "press the handle down",
        "push the lever on the box all the way down",
        "press down on the red handle",
    ),
    "faucet-open": (
        "turn the faucet on",
        "open the tap",
        "rotate the faucet's handle to let the water run",
    ),
    "lever-pull": (
        "pull the lever up",
        "lift the lever until it points upwards",
        "raise the lever",
    ),
    "coffee-button": (
        "start the coffee machine",
        "press the button of the coffee machine",
        "push the coffee machine's button to brew a cup",
    ),
    "soccer": (
        "kick the ball into the goal",
        "push the football into the net",
        "score a goal with the ball",
    ),
    "sweep-into": (
        "sweep the puck into the hole",
        "push the cube across the table so that it drops in the hole",
        "brush the block into the opening",
    ),
    "plate-slide-side": (
        "slide the plate sideways into the goal",
        "push the disc to the side until it is in the net",
        "move the plate into the cabinet on the left",
    ),
}

DEFAULT_TASKS: tuple[str, ...] = (
    "push",
    "drawer-open",
    "button-press-topdown",
    "pick-place",
    "window-open",
    "door-open",
    "plate-slide",
    "drawer-close",
    "faucet-open",
    "handle-press",
    "soccer",
    "window-close",
    "button-press",
    "coffee-button",
)


def sentence(task: str, index: int) -> str:
    """A sentence for a task's start number `index`; starts use the task's sentences in turn.

    Raises:
        UserError: the task has no sentence.
    """
    check_task(task)
    return SENTENCES[task][index % len(SENTENCES[task])]


def check_task(task: str) -> None:
    """Raise UserError, naming the nearest task, unless `task` is a simulated task."""
    if task not in SENTENCES:
        raise UserError(
            f"unknown Meta-World task '{task}'", where="tasks", remedy=nearest_key(task, list(SENTENCES))
        )
