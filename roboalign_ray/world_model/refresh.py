"""Context refresh: where the segments of a long rollout end, and which frames the next segment restarts from.

    none               one segment; the history grows with the horizon
    swr                sliding-window re-encoding (RoboAlign-R1, arXiv 2605.03821): every `window` frames the last
                       predicted frame is decoded, clamped, rounded to the uint8 grid and re-encoded as the only history
    token_window       every `window` frames the history is cut to the first context and the last frame, as generated
    sinks              one segment; the memory keeps its first tokens and the last `window` frames
                       (StreamingLLM, arXiv 2309.17453)
    reference_recent   every `window` frames the history is cut to the first context and the last `recent` frames,
                       decoded and re-encoded

The world model determines how codes or latents are carried over (`token/refresh_starts.py`). A model of pixels has
nothing to decode and re-encode: there, "token_window" equals "reference_recent" with one frame. `check_refresh` refuses
a policy that a model does not support.
"""

from __future__ import annotations

from dataclasses import dataclass

from roboalign_ray.config import RefreshConfig
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.world_model.protocol import ModelCard


@dataclass(frozen=True)
class RefreshPlan:
    """The decisions of a policy.

    Attributes:
        segment_frames: generated frames of a segment; None for one unlimited segment.
        keeps_context: whether the first context remains after a refresh.
        recent: number of last frames that the next segment starts from.
        reencodes: whether these are decoded to pixels and encoded again.
    """

    segment_frames: int | None
    keeps_context: bool = True
    recent: int = 1
    reencodes: bool = True

    @classmethod
    def of(cls, config: RefreshConfig) -> RefreshPlan:
        """The plan of the policy that `config` names."""
        window = config.window
        return {
            "none": cls(None),
            "swr": cls(window, keeps_context=False),
            "token_window": cls(window, reencodes=False),
            "sinks": cls(None),
            "reference_recent": cls(window, recent=config.recent),
        }[config.policy]

    def segments(self, horizon: int) -> tuple[int, ...]:
        """Generated frames of each segment of a rollout; they sum to the horizon."""
        if self.segment_frames is None:
            return (horizon,)
        full, rest = divmod(horizon, self.segment_frames)
        return (self.segment_frames,) * full + ((rest,) if rest else ())

    def left(self, generated: int) -> int | None:
        """Number of frames that a segment may still generate after `generated` ones; None for no limit."""
        return None if self.segment_frames is None else self.segment_frames - generated


def check_refresh(refresh: RefreshConfig, card: ModelCard) -> None:
    """Whether a world model can be rolled out with a refresh policy.

    Raises:
        UserError: it does not know the policy, or a segment is no whole number of its clips.
    """
    if refresh.policy not in card.policies:
        raise UserError(
            f"a world model of kind '{card.kind}' has no refresh policy '{refresh.policy}'",
            where="rollout.refresh.policy",
            remedy=f"set one of {', '.join(sorted(card.policies))}",
        )
    if RefreshPlan.of(refresh).segment_frames is not None:
        check_clips(refresh.window, card, "rollout.refresh.window")


def check_clips(frames: int, card: ModelCard, where: str) -> None:
    """Whether a world model can predict so many frames.

    Raises:
        UserError: they are no whole number of its clips.
    """
    if frames % card.clip_frames:
        raise UserError(
            f"{frames} frames are no whole number of the world model's clips of {card.clip_frames} frames",
            where=where,
            remedy=f"give a multiple of {card.clip_frames}",
        )
