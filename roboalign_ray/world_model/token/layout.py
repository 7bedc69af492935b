"""The layout of token sequences: slots, vocabulary ranges and masks. No other module defines these.

    [context C][dyn_0 D][act_0 A][dyn_1 D][act_1 A] ... [dyn_{n-1} D][act_{n-1} A]

One vocabulary, in this order: dynamics codes, context codes, action bins, bos, eos. No separators. act_t follows
frame t and precedes frame t+1. The loss covers dyn_1 … dyn_{n-1} only: dyn_0 and the context are given.
With 4,375 codes, 256 bins and C, D, A = 1280, 80, 13 this is the layout of the public RLVR-World code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from roboalign_ray.config import TokenizerConfig, WorldModelConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.foundation.storage.files import folder_fault
from roboalign_ray.foundation.storage.readers import read_object

LAYOUT_FILE = "layout.json"


@dataclass(frozen=True)
class SequenceLayout:
    """Sizes of the slots and ranges of the vocabulary.

    Attributes:
        context_tokens, dynamics_tokens, action_tokens: tokens C, D, A of the three kinds of slot.
        codes: codes of the quantiser, the same for both branches.
        action_bins: bins per action dimension.

    Raises:
        UserError: on construction, if a size is not a positive integer.
    """

    context_tokens: int
    dynamics_tokens: int
    action_tokens: int
    codes: int
    action_bins: int

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(
                    f"{name} is {size!r:.60}, not a positive whole number", where="sequence layout"
                )

    @classmethod
    def from_config(
        cls, tokenizer: TokenizerConfig, world_model: WorldModelConfig, action_bins: int
    ) -> SequenceLayout:
        """The layout of a model with these configs."""
        return cls(
            context_tokens=tokenizer.context_tokens,
            dynamics_tokens=tokenizer.dynamics_tokens,
            action_tokens=world_model.action_dims,
            codes=tokenizer.codes,
            action_bins=action_bins,
        )

    @property
    def dynamics_range(self) -> tuple[int, int]:
        """Ids [first, past last) of dynamics codes."""
        return 0, self.codes

    @property
    def context_range(self) -> tuple[int, int]:
        """Ids [first, past last) of context codes."""
        return self.codes, 2 * self.codes

    @property
    def action_range(self) -> tuple[int, int]:
        """Ids [first, past last) of action bins."""
        return 2 * self.codes, 2 * self.codes + self.action_bins

    @property
    def bos(self) -> int:
        """Id of the begin token; unused inside a sequence, kept for layout compatibility."""
        return self.action_range[1]

    @property
    def eos(self) -> int:
        """Id of the end token; unused inside a sequence, kept for layout compatibility."""
        return self.bos + 1

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return self.eos + 1

    @property
    def frame_tokens(self) -> int:
        """Number of tokens of one frame with its action."""
        return self.dynamics_tokens + self.action_tokens

    def length(self, frames: int) -> int:
        """Number of tokens of a context and `frames` frames with their actions."""
        return self.context_tokens + frames * self.frame_tokens

    def peak_prompt(self, generated: int) -> int:
        """Number of tokens before the last of `generated` frames: the longest prompt of a segment."""
        return self.length(generated)

    def assemble(self, context: np.ndarray, dynamics: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Assemble codes and bins into one id sequence.

        Args:
            context: codes int [..., C].
            dynamics: codes int [..., n, D], frame 0 first.
            actions: bins int [..., m, A]; m is n, or n - 1 if the last frame's action is unknown.

        Returns:
            ids int64 [..., C + n*D + m*A].

        Raises:
            UserError: a shape does not fit, or a value is outside its range.
        """
        frames, given = dynamics.shape[-2], actions.shape[-2]
        self._check("context", context, self.context_tokens, self.codes)
        self._check("dynamics", dynamics, self.dynamics_tokens, self.codes)
        self._check("action", actions, self.action_tokens, self.action_bins)
        if given not in (frames, frames - 1):
            raise UserError(f"{given} actions for {frames} frames", where="sequence layout")
        lead = context.shape[:-1]
        slots = np.empty((*lead, frames, self.frame_tokens), dtype=np.int64)
        slots[..., : self.dynamics_tokens] = dynamics + self.dynamics_range[0]
        slots[..., :given, self.dynamics_tokens :] = actions + self.action_range[0]
        flat = slots.reshape(*lead, frames * self.frame_tokens)
        if given < frames:
            flat = flat[..., : -self.action_tokens]
        return np.concatenate([context.astype(np.int64) + self.context_range[0], flat], axis=-1)

    def predicted(self, frames: int) -> np.ndarray:
        """Positions [ (frames-1) * D ] of the tokens that the loss covers, in a sequence of `frames` frames."""
        starts = self.context_tokens + self.frame_tokens * np.arange(1, frames)
        return (starts[:, None] + np.arange(self.dynamics_tokens)[None, :]).reshape(-1)

    def _check(self, name: str, values: np.ndarray, size: int, high: int) -> None:
        if values.shape[-1] != size:
            raise UserError(
                f"{name} slot holds {values.shape[-1]} tokens, not {size}", where="sequence layout"
            )
        if values.size and (values.min() < 0 or values.max() >= high):
            raise UserError(
                f"{name} value outside [0, {high})", where="sequence layout", remedy="was it offset already?"
            )


def read_layout(folder: Path) -> SequenceLayout:
    """Read the layout from a world model's folder.

    Raises:
        UserError: the file is missing or invalid.
    """
    path = folder / LAYOUT_FILE
    if not path.is_file():
        lacks = folder_fault(folder, f"holds no {LAYOUT_FILE}")
        raise UserError(lacks, where=str(folder), remedy="give a world model folder")
    try:
        return SequenceLayout(**read_object(path, "sequence layout"))
    except TypeError as error:
        raise UserError(f"is not a sequence layout ({error})", where=str(path)) from error


def check_same_layout(found: SequenceLayout, expected: SequenceLayout, folder: Path) -> None:
    """Check that a world model has the layout that tokenizer and actions need.

    Raises:
        UserError: it has another layout; the message names the sizes that differ.
    """
    if found != expected:
        had, wanted = asdict(found), asdict(expected)
        differing = ", ".join(f"{key} {had[key]} != {wanted[key]}" for key in had if had[key] != wanted[key])
        raise UserError(
            f"was made for another layout ({differing})",
            where=str(folder),
            remedy="use the tokenizer and action bins that the model was trained with",
        )
