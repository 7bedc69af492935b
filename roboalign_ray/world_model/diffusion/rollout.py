"""What the diffusion world model generated: clean frames, what they started from, and the actions between.

    number   -m … -1    0 … T-1            the frames of a rollout; those before 0 are given and shared by all samples
                         └─ segments ─┘    each says how far back its frames look, and which frame is their reference

The model rounds generated frames to uint8 before it goes on from them, so these frames are all that it saw of itself.
Noise is not recorded: it follows from the rollout's seeds (`noise.py`). Frames are packed without loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.diffusion.packed_frames import PackedFrames
from roboalign_ray.world_model.protocol import Rollout


@dataclass(frozen=True)
class DiffusionSegment:
    """What was generated between two context refreshes.

    Attributes:
        frames: generated frames n.
        version: weight version that generated them.
        oldest: number of the oldest frame that the history reaches back to.
        reference: number of the frame that is the reference; None: the payload's `context`.
    """

    frames: int
    version: int
    oldest: int
    reference: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How clips were sampled; see `config.DiffusionSamplingConfig`.

    Attributes:
        steps: denoising steps.
        action_noise, history_noise: standard deviations of what made the samples of a group differ, beside the noise.
        fresh_noise: level of the noise that every step but the last added; 0: none did.
    """

    steps: int
    action_noise: float = 0.0
    history_noise: float = 0.0
    fresh_noise: float = 0.0


@dataclass(frozen=True)
class DiffusionPayload:
    """The diffusion world model's `protocol.Payload`.

    Attributes:
        segments: in order.
        known: packed [1, 1 + m, V, H, W, 3]: the context, which is the reference of the first segment, and the m given
            frames that segments look back to.
        actions: float32 [m - 1 + T, A] in the units of the episodes, or [G, m - 1 + T, A] where the samples were given
            different ones; the first m - 1 belong to given frames before the last.
        packed: generated frames, packed [G, T, V, H, W, 3].
        sampling: how.

    Raises:
        ValueError: on construction, where the parts do not fit together.
    """

    kind: ClassVar[str] = "diffusion"

    segments: tuple[DiffusionSegment, ...]
    known: PackedFrames
    actions: np.ndarray
    packed: PackedFrames
    sampling: Sampling

    def __post_init__(self) -> None:
        samples, horizon = self.packed.shape[:2]
        if self.known.shape[0] != 1 or self.given < 1 or self.known.shape[2:] != self.packed.shape[2:]:
            raise ValueError(
                f"known frames of shape {self.known.shape} for generated ones of {self.packed.shape}"
            )
        rows, steps = self.actions.shape[:-2], self.given - 1 + horizon
        if self.actions.ndim not in (2, 3) or rows not in ((), (samples,)) or self.actions.shape[-2] != steps:
            raise ValueError(f"actions of shape {self.actions.shape} for {steps} steps of {samples} samples")
        if self.actions.dtype != np.float32:
            raise ValueError(f"actions are {self.actions.dtype}, not float32")
        self._check_segments(horizon)

    def _check_segments(self, horizon: int) -> None:
        first = 0
        for number, segment in enumerate(self.segments):
            referred = segment.reference is None or -self.given <= segment.reference < first
            if segment.frames < 1 or not -self.given <= segment.oldest < first or not referred:
                raise ValueError(f"segment {number}, {segment}, does not begin at frame {first}")
            first += segment.frames
        if first != horizon:
            raise ValueError(f"segments of {first} frames in a rollout of {horizon}")

    @property
    def samples(self) -> int:
        """G."""
        return self.packed.shape[0]

    @property
    def given(self) -> int:
        """Given frames m."""
        return self.known.shape[1] - 1

    @property
    def units(self) -> int:
        """Denoised frames of all samples; the views of a moment count as one frame."""
        return self.packed.shape[0] * self.packed.shape[1]

    @cached_property
    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """The context uint8 [V, H, W, 3], and the given frames [m, V, H, W, 3], oldest first.

        Raises:
            ValueError: the data is damaged.
        """
        known = self.known.frames()[0]
        return known[0], known[1:]

    def frames(self) -> np.ndarray:
        """Generated frames uint8 [G, T, V, H, W, 3].

        Raises:
            ValueError: the data is damaged.
        """
        return self.packed.frames(self.start[1][-1])

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON types, arrays by name)."""
        header = {
            "segments": [asdict(segment) for segment in self.segments],
            "sampling": asdict(self.sampling),
            "known": list(self.known.shape),
            "frames": list(self.packed.shape),
        }
        return header, {"known": self.known.data, "frames": self.packed.data, "actions": self.actions}

    @classmethod
    def from_arrays(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> DiffusionPayload:
        """Inverse of `to_arrays`, bit for bit.

        Raises:
            ValueError, LookupError, TypeError: these are not the arrays of a diffusion rollout.
        """
        payload = cls(
            segments=tuple(_segment(entry) for entry in header["segments"]),
            known=PackedFrames(_shape(header["known"]), arrays["known"]),
            actions=arrays["actions"],
            packed=PackedFrames(_shape(header["frames"]), arrays["frames"]),
            sampling=_sampling(header["sampling"]),
        )
        payload.frames()  # raises where the packed data is damaged
        return payload


def diffusion_payload(rollout: Rollout) -> DiffusionPayload:
    """The payload of a rollout that a diffusion world model made.

    Raises:
        UserError: another kind made it.
    """
    if not isinstance(rollout.payload, DiffusionPayload):
        raise UserError(
            f"a rollout of kind '{rollout.payload.kind}' is not made of frames", where=rollout.prompt_id
        )
    return rollout.payload


def _segment(entry: Mapping[str, Any]) -> DiffusionSegment:
    reference = entry["reference"]
    numbers = {name: int(entry[name]) for name in ("frames", "version", "oldest")}
    return DiffusionSegment(**numbers, reference=None if reference is None else int(reference))


def _sampling(entry: Mapping[str, Any]) -> Sampling:
    fresh = float(entry["fresh_noise"]) if "fresh_noise" in entry else 0.0  # older files have none
    return Sampling(int(entry["steps"]), float(entry["action_noise"]), float(entry["history_noise"]), fresh)


def _shape(entry: Any) -> tuple[int, int, int, int, int, int]:
    groups, frames, views, height, width, colours = map(int, entry)
    return groups, frames, views, height, width, colours
