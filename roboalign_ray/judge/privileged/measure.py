"""The privileged teacher: six scores by measurement, when the real continuation or the simulator's state is known.

A real clip is scored from the simulator's labels alone (`simulator_scores`). A generated clip is compared, region by
region, with the real clip that the same actions led to (`PrivilegedTeacher`): the gripper, the object, the steadiness
of light and speed, the background and the fine structure. A score that cannot be measured is `Failed`, never 0. The
measurements are [ours]; `PrivilegedConfig` has the thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from roboalign_ray.config.bench import PrivilegedConfig
from roboalign_ray.foundation.failures import Failed, UserError
from roboalign_ray.judge.rubric import DIMENSIONS, maxima, names

_BLOCK = 8  # side length in pixels of the blocks that are checked for jumps
Component = float | Failed


@dataclass(frozen=True)
class Reference:
    """A real clip and its reference data.

    Attributes:
        frames: uint8 [T, H, W, 3], start frame first.
        scores: float32 [6], points of the real clip; a generated clip cannot get more.
        object_mask, gripper_mask: bool [T, H, W], or None.
        contact: bool [T], the gripper touches the object; or None.
    """

    frames: np.ndarray
    scores: np.ndarray
    object_mask: np.ndarray | None = None
    gripper_mask: np.ndarray | None = None
    contact: np.ndarray | None = None


@dataclass(frozen=True)
class PrivilegedScore:
    """Six components in the rubric's order, and the measurements they come from (shares in [0, 1], 1 is best)."""

    components: tuple[Component, ...]
    measurements: Mapping[str, float] = field(default_factory=dict)

    def scores(self) -> np.ndarray | Failed:
        """Points float32 [6]; `Failed` with the names of the components if any could not be measured."""
        failed = [
            f"{dimension.name}: {value.reason}"
            for dimension, value in zip(DIMENSIONS, self.components, strict=True)
            if isinstance(value, Failed)
        ]
        if failed:
            return Failed("; ".join(failed), "unmeasured")
        return np.array(self.components, dtype=np.float32)


class PrivilegedTeacher:
    """Scores generated clips against their real continuation.

    | dimension | measured by |
    |---|---|
    | instruction following | the real clip's points x mean agreement of gripper and object regions |
    | manipulation success | the real clip's points x agreement of the object's region at the end |
    | action-outcome consistency | agreement of the gripper's region: it follows the actions |
    | temporal consistency | frozen frames, flicker (second differences), jumps of a block |
    | contact realism | agreement around gripper and object during contact; stillness of the object otherwise |
    | physics adherence | background preserved, fine structure preserved, object still visible |

    Agreement of a region is 1 - (error - tolerance) / change, with the mean absolute error to the real clip and the
    change of the real clip from its start frame in the same region; a still image gets 0.
    """

    def __init__(self, config: PrivilegedConfig | None = None) -> None:
        self.config = config or PrivilegedConfig()

    def score(self, frames: np.ndarray, reference: Reference) -> PrivilegedScore:
        """Score a clip uint8 [T', H, W, 3] whose frame 0 is the real start; a short clip is extended by its last frame.

        Raises:
            UserError: the image size differs from the reference's, or there are fewer than three frames.
        """
        real_uint8 = reference.frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != real_uint8.shape[1:]:
            raise UserError(
                f"clip is {frames.dtype} {frames.shape}, its reference {real_uint8.shape}", where="teacher"
            )
        if min(len(frames), len(real_uint8)) < 3:
            raise UserError(f"a clip of {len(frames)} frames is too short to be judged", where="teacher")
        held = frames[np.minimum(np.arange(len(real_uint8)), len(frames) - 1)]
        generated, real = held.astype(np.float32), real_uint8.astype(np.float32)
        shares: dict[str, float] = {}
        shares |= self._regions(generated, real, reference)
        shares |= self._time(generated[: len(frames)], real[: len(frames)])
        shares |= self._scene(generated, real, reference)
        return PrivilegedScore(self._components(shares, reference), shares)

    def _components(self, shares: Mapping[str, float], reference: Reference) -> tuple[Component, ...]:
        def product(*needed: str) -> Component:
            missing = [name for name in needed if name not in shares]
            if missing:
                return Failed(f"no {' and no '.join(missing)} can be measured", "unmeasured")
            return float(np.prod([shares[name] for name in needed]))

        steady = ("motion", "steadiness", "continuity")
        lasting = ("background", "sharpness", *(("presence",) if "presence" in shares else ()))
        both: Component = product("gripper", "object")
        if not isinstance(both, Failed):
            both = (shares["gripper"] + shares["object"]) / 2
        parts = (both, product("outcome"), product("gripper"), product(*steady), product("contact"))
        limits = np.minimum(reference.scores, maxima())
        return tuple(
            part if isinstance(part, Failed) else part * float(limit)
            for part, limit in zip((*parts, product(*lasting)), limits, strict=True)
        )

    def _regions(self, generated: np.ndarray, real: np.ndarray, reference: Reference) -> dict[str, float]:
        """Agreement of gripper and object over the clip, of the object over its last third, and of contacts."""
        shares: dict[str, float] = {}
        hand, thing = reference.gripper_mask, reference.object_mask
        everywhen = np.arange(len(real)) > 0
        if hand is not None:
            shares |= self._agreement("gripper", generated, real, hand, everywhen)
        if thing is not None:
            end = np.arange(len(real)) >= len(real) - max(1, len(real) // 3)
            for name, when in (("object", everywhen), ("outcome", end)):
                there = self._agreement(name, generated, real, thing, when)
                # An object that was wrongly left behind is still at its start position.
                left = self._agreement(name, generated, real, np.broadcast_to(thing[:1], thing.shape), when)
                shares |= {name: min(there[name], left.get(name, 1.0))} if there else {}
        if hand is not None and thing is not None and reference.contact is not None:
            touching = np.asarray(reference.contact, dtype=bool) & everywhen
            touched = self._agreement("contact", generated, real, hand | thing, touching).get("contact", 1.0)
            alone = self._stillness(generated, real, thing & ~hand, ~touching)
            weight = touching[1:].mean()
            shares["contact"] = float(weight * touched + (1 - weight) * alone)
        return shares

    def _agreement(
        self, name: str, generated: np.ndarray, real: np.ndarray, mask: np.ndarray, when: np.ndarray
    ) -> dict[str, float]:
        """The share under its name; empty if the region is never visible."""
        inside = mask & when[:, None, None]
        if not inside.any():
            return {}
        error = np.abs(generated - real).mean(axis=-1)[inside].mean()
        change = np.abs(real - real[:1]).mean(axis=-1)[inside].mean()
        limit = max(float(change), self.config.region_floor)
        return {name: _share(1 - (float(error) - self.config.tolerance) / limit)}

    def _stillness(
        self, generated: np.ndarray, real: np.ndarray, mask: np.ndarray, when: np.ndarray
    ) -> float:
        inside = (mask & when[:, None, None])[1:]
        if not inside.any():
            return 1.0
        moved, wanted = (
            np.abs(np.diff(clip, axis=0)).mean(axis=-1)[inside].mean() for clip in (generated, real)
        )
        return _share(1 - max(0.0, float(moved - wanted)) / self.config.untouched_limit)

    def _time(self, generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
        """Shares for motion where the real frames move, for steady light and speed, and for the absence of jumps."""
        config = self.config
        change, wanted = (np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3)) for clip in (generated, real))
        moving = wanted >= config.still
        frozen = ((change < config.freeze_share * wanted) & moving).sum() / max(1, moving.sum())
        second, usual = (float(np.abs(np.diff(clip, 2, axis=0)).mean()) for clip in (generated, real))
        jump, largest = (float(_block_change(clip).max()) for clip in (generated, real))
        return {
            "motion": _share(1 - float(frozen)),
            "steadiness": _share(1 - max(0.0, second - usual) / config.flicker_limit),
            "continuity": _share(1 - max(0.0, jump - largest) / config.jump_limit),
        }

    def _scene(self, generated: np.ndarray, real: np.ndarray, reference: Reference) -> dict[str, float]:
        """Shares of the background, of the fine structure and of the object's contrast that are preserved."""
        config = self.config
        error = np.abs(generated - real).mean(axis=-1)
        still = np.abs(real - real[:1]).mean(axis=-1).max(axis=0) < config.region_floor
        strange = float(error[1:, still].mean()) if still.any() else 0.0
        fine, usual = (_gradient_energy(clip[1:]) for clip in (generated, real))
        ratio = fine / max(usual, 1e-6)
        shares = {
            "background": _share(1 - (strange - config.tolerance) / config.background_limit),
            "sharpness": _share((ratio - config.least_sharpness) / (1 - config.least_sharpness)),
        }
        thing = reference.object_mask
        if thing is not None and thing[1:].any():
            shares["presence"] = self._presence(generated, real, thing)
        return shares

    def _presence(self, generated: np.ndarray, real: np.ndarray, thing: np.ndarray) -> float:
        """Share of the object's contrast to its surroundings that remains, anywhere near its true position."""
        near = _ring(thing)
        kept = []
        for frame, wanted, inside, around in zip(generated[1:], real[1:], thing[1:], near[1:], strict=True):
            if inside.any() and around.any():
                contrast = wanted[inside] - wanted[around].mean(axis=0)
                found = frame[inside] - frame[around].mean(axis=0)
                size = float(np.abs(contrast).mean())
                if size > self.config.tolerance:
                    kept.append(min(1.0, float(np.abs(found).mean()) / size))
        # A minimum remains: an object that was pushed aside has not vanished, but looks the same to this measure.
        least = self.config.absent_share
        return least + (1 - least) * float(np.mean(kept)) if kept else 1.0


@dataclass(frozen=True)
class ClipLabels:
    """The simulator's labels of a real clip; None or an absent key means unknown.

    Attributes:
        succeeded: the task is done by the clip's last frame.
        privileged: labels of the clip's frames, with the names of `Outcome.privileged`.
    """

    succeeded: bool | None
    privileged: Mapping[str, np.ndarray] = field(default_factory=dict)


def simulator_scores(labels: ClipLabels, config: PrivilegedConfig | None = None) -> PrivilegedScore:
    """Points of a real simulated clip from its labels.

    Success gives all points of the first two dimensions. Otherwise progress counts: the larger of the approach of the
    gripper to the object and of the object to its target, relative to `progress_scale`. It gives up to all points of
    instruction following and up to one point of manipulation success. A simulator's images are consistent by
    construction; deep penetration reduces contact realism.
    """
    config = config or PrivilegedConfig()
    progress = clip_progress(labels.privileged, config)
    depth = labels.privileged.get("penetration")
    following: Component
    success: Component
    if labels.succeeded is None:
        following = success = Failed("success is not known", "unmeasured")
    elif labels.succeeded:
        following, success = 3.0, 2.0
    elif isinstance(progress, Failed):
        following = success = progress
    else:
        following, success = 3.0 * progress, 1.0 * progress
    contact: Component = Failed("no penetration labels", "unmeasured")
    if depth is not None and len(depth):
        contact = _share(1 - float(np.max(depth)) / config.penetration_limit)
        contact = min(1.0, 2 * contact)  # contact forces in a simulator need a shallow overlap
    measured = {} if isinstance(progress, Failed) else {"progress": progress}
    return PrivilegedScore((following, success, 1.0, 1.0, contact, 2.0), measured)


def clip_progress(labels: Mapping[str, np.ndarray], config: PrivilegedConfig) -> Component:
    """Progress in [0, 1] over a clip: the larger of gripper towards object and object towards target."""
    hand, thing = labels.get("gripper_position"), labels.get("object_position")
    if hand is None or thing is None or not np.isfinite([*hand[[0, -1]], *thing[[0, -1]]]).all():
        return Failed("no hand and object positions", "unmeasured")
    reach = np.linalg.norm(hand - thing, axis=-1)
    approach = _closed(reach, config.progress_scale)
    if reach[0] < config.near and reach[-1] < config.near:
        approach = 1.0
    target = labels.get("target_position")
    if target is None or not np.isfinite(target[[0, -1]]).all():
        return approach
    return max(approach, _closed(np.linalg.norm(thing - target, axis=-1), config.progress_scale))


def _closed(distance: np.ndarray, scale: float) -> float:
    return _share(float(distance[0] - distance[-1]) / max(min(float(distance[0]), scale), 1e-3))


def _share(value: float) -> float:
    return float(np.clip(value, 0.0, 1.0))


def _block_change(clip: np.ndarray) -> np.ndarray:
    """Largest mean change of any block of 8x8 pixels, per step [T - 1]."""
    change = np.abs(np.diff(clip, axis=0)).mean(axis=-1)
    height, width = (max(_BLOCK, side - side % _BLOCK) for side in change.shape[1:])
    rows, columns = (min(_BLOCK, side) for side in change.shape[1:])
    change = change[:, :height, :width]
    blocks = change.reshape(len(change), change.shape[1] // rows, rows, change.shape[2] // columns, columns)
    return blocks.mean(axis=(2, 4)).max(axis=(1, 2))


def _gradient_energy(clip: np.ndarray) -> float:
    grey = clip.mean(axis=-1)
    return float(np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean())


def _ring(mask: np.ndarray, width: int = 3) -> np.ndarray:
    """The surroundings of a mask [T, H, W], up to `width` pixels away."""
    grown = mask
    for _ in range(width):
        padded = np.pad(grown, ((0, 0), (1, 1), (1, 1)))
        parts = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
        grown = np.logical_or.reduce([grown, *parts])
    return grown & ~mask


def describe(score: PrivilegedScore) -> dict[str, float | str]:
    """Components by name, for provenance and tables: points, or the reason why there are none."""
    return {
        name: value.reason if isinstance(value, Failed) else round(value, 4)
        for name, value in zip(names(), score.components, strict=True)
    }
