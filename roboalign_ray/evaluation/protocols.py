"""Evaluation protocols for a world model on held-out windows: one step from real frames, and long rollouts.

    one_step       predict every next frame from the real frames before it, with true and with shuffled actions;
                   the baseline copies the previous frame
    long_horizon   predict a whole rollout with each context-refresh policy; the baseline copies the first frame

Both take any `WorldModel`, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from roboalign_ray.config import EvaluationConfig, RefreshConfig
from roboalign_ray.episodes.window_names import episode_of
from roboalign_ray.evaluation.results import LongHorizonResult, MetricCurves, OneStepResult, PolicyResult
from roboalign_ray.foundation.failures import UserError
from roboalign_ray.judge.validation.selection import mean_known
from roboalign_ray.metrics.frame_metrics import FRAME_METRICS, ClipMetrics, clip_metrics
from roboalign_ray.metrics.perceptual import PerceptualDistance
from roboalign_ray.world_model.protocol import ALL_POLICIES, Prompt, Rollout, WorldModel, first_view

POLICY_NAMES = {
    "none": "plain autoregression",
    "swr": "SWR",
    "token_window": "token window",
    "sinks": "attention sinks",
    "reference_recent": "reference + recent",
}
Advance = Callable[[int], None]
Scorer = Callable[
    [Rollout, np.ndarray], Mapping[str, np.ndarray]
]  # of frames [G, T, V, H, W, 3]: name -> [G]
ViewMetrics = Mapping[str, ClipMetrics]  # by the views' names, in their order


@dataclass(frozen=True)
class EvaluationWindow:
    """A held-out window of an episode.

    Attributes:
        prompt: context, start frame and actions.
        real: uint8 [T, V, H, W, 3], the frames that follow the start frame; T is the prompt's horizon. Frames without
            an axis of views are of one view.
        views: names of the V cameras; () where they are not known.
    """

    prompt: Prompt
    real: np.ndarray
    views: tuple[str, ...] = ()

    @property
    def start(self) -> np.ndarray:
        """Uint8 [V, H, W, 3], the frame before `real`."""
        return self.prompt.start

    @property
    def episode(self) -> str:
        """The episode's name, as the prompt's name has it."""
        return episode_of(self.prompt.prompt_id)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views, or their numbers."""
        return self.views or tuple(f"view {number}" for number in range(self.real.shape[1]))

    def __post_init__(self) -> None:
        if self.real.ndim == 4:
            object.__setattr__(self, "real", self.real[:, None])
        if len(self.real) != self.prompt.horizon:
            raise UserError(
                f"{len(self.real)} real frames for {self.prompt.horizon} actions", where=self.prompt.prompt_id
            )


def policy_name(refresh: RefreshConfig) -> str:
    """The name of a policy in tables."""
    name = POLICY_NAMES[refresh.policy]
    return name if refresh.policy == "none" else f"{name}, W = {refresh.window}"


def standard_policies(
    config: EvaluationConfig, base: RefreshConfig, known: Collection[str] = ALL_POLICIES
) -> list[RefreshConfig]:
    """Plain autoregression, SWR at every configured window, and the three other policies at the first window.

    Args:
        known: policies of the world model; others are left out.
    """
    policies = [base.model_copy(update={"policy": "none"})]
    policies += [base.model_copy(update={"policy": "swr", "window": window}) for window in config.windows]
    others = ("token_window", "sinks", "reference_recent")
    policies += [base.model_copy(update={"policy": p, "window": config.windows[0]}) for p in others]
    return [policy for policy in policies if policy.policy in known]


def one_step(
    model: WorldModel,
    windows: Sequence[EvaluationWindow],
    lpips: PerceptualDistance,
    config: EvaluationConfig,
    *,
    seed: int = 0,
    batch: int = 16,
    every: int = 1,
    advance: Advance | None = None,
) -> OneStepResult:
    """Predict every next frame from the real frames before it, as rollouts of one frame.

    The model sees the previous frame and up to `config.history` frames before that, with the actions between them; the
    oldest frame is the context. Shuffled actions are the windows' actions, permuted over all windows and times. Only
    the last action, which leads to the predicted frame, is replaced.

    Args:
        model: the world model; its refresh policy does not affect rollouts of one frame.
        windows: held-out windows.
        lpips: the perceptual distance.
        config: history, thresholds and resamples.
        seed: seed of the sampling and of the shuffle.
        batch: prompts per call.
        every: predict only every n-th frame of a window.
        advance: called with the number of predictions made since the last call.
    """
    if not windows:
        raise UserError("no windows to evaluate", where="one_step")
    shuffled = _shuffle_actions(windows, np.random.default_rng(seed))
    predicted: list[ViewMetrics] = []
    misled: list[ViewMetrics] = []
    copied: list[ViewMetrics] = []
    for window, other in zip(windows, shuffled, strict=True):
        steps = np.arange(0, window.prompt.horizon, every)
        frames = np.concatenate([window.start[None], window.real])
        before_T, real_T = frames[steps], window.real[steps]
        for sink, actions in ((predicted, window.prompt.actions), (misled, other)):
            prompts = [_step_prompt(window.prompt, frames, int(step), actions, config) for step in steps]
            groups = _rollout(model, prompts, [(seed,)] * len(prompts), batch, advance)
            frames_T = np.concatenate([model.decode(group)[:, 0] for group in groups])
            sink.append(_view_metrics(frames_T[None], real_T, window, lpips, config))
        copied.append(_view_metrics(before_T[None], real_T, window, lpips, config))
    return OneStepResult(
        predicted=_stack(predicted, windows, config),
        shuffled=_stack(misled, windows, config),
        copy_last=_stack(copied, windows, config),
        lpips_label=lpips.label,
        frames_seen=1 + min(config.history, max(window.prompt.horizon for window in windows) - 1),
    )


def _step_prompt(
    prompt: Prompt, frames: np.ndarray, step: int, actions: np.ndarray, config: EvaluationConfig
) -> Prompt:
    """The prompt for one frame after frame `step`, with the real frames and true actions before it."""
    first = max(0, step - config.history)
    return Prompt(
        prompt_id=f"{prompt.prompt_id}/{step}",
        context=frames[first],
        start=frames[step],
        actions=actions[step : step + 1],
        instruction=prompt.instruction,
        past=frames[first:step] if step > first else None,
        past_actions=prompt.actions[first:step] if step > first else None,
    )


def long_horizon(
    engine_for: Callable[[RefreshConfig], WorldModel],
    policies: Sequence[RefreshConfig],
    windows: Sequence[EvaluationWindow],
    lpips: PerceptualDistance,
    config: EvaluationConfig,
    *,
    seed: int = 0,
    batch: int = 16,
    keep: int = 4,
    advance: Advance | None = None,
) -> LongHorizonResult:
    """Roll every policy out over the same windows with the same seeds.

    Args:
        engine_for: returns the world model of a policy.
        policies: see `standard_policies`.
        windows: held-out windows, all of the same horizon.
        lpips: the perceptual distance.
        config: samples per window, thresholds and resamples.
        seed: sample k of every window is drawn with seed + k.
        batch: windows per call; times are measured for such batches.
        keep: number of windows whose frames are kept for videos.
        advance: called with the number of windows done since the last call.

    Raises:
        UserError: there are no windows, or they have different horizons.
    """
    horizons = {window.prompt.horizon for window in windows}
    if len(horizons) != 1:
        raise UserError(f"windows have the horizons {sorted(horizons)}, not one", where="long_horizon")
    results = [
        evaluate_rollouts(
            engine_for(refresh),
            windows,
            lpips,
            config,
            refresh,
            seed=seed,
            batch=batch,
            keep=keep,
            advance=advance,
        )
        for refresh in policies
    ]
    return LongHorizonResult(
        policies=tuple(results),
        copy_first=copied_first(windows, lpips, config),
        lpips_label=lpips.label,
        horizon=horizons.pop(),
        windows=len(windows),
        samples=config.samples,
    )


def copied_first(
    windows: Sequence[EvaluationWindow], lpips: PerceptualDistance, config: EvaluationConfig
) -> MetricCurves:
    """The baseline of doing nothing: the start frame stays for the whole window."""
    still = [np.broadcast_to(window.start, window.real.shape)[None] for window in windows]
    measured = [
        _view_metrics(frames, window.real, window, lpips, config)
        for frames, window in zip(still, windows, strict=True)
    ]
    return _stack(measured, windows, config)


def evaluate_rollouts(
    model: WorldModel,
    windows: Sequence[EvaluationWindow],
    lpips: PerceptualDistance,
    config: EvaluationConfig,
    refresh: RefreshConfig,
    *,
    seed: int = 0,
    batch: int = 16,
    keep: int = 4,
    advance: Advance | None = None,
    scorer: Scorer | None = None,
) -> PolicyResult:
    """Evaluate one model's rollouts over held-out windows: one row of `long_horizon`, or one side of before/after.

    The arguments are those of `long_horizon`; `refresh` is the model's refresh policy and names the result. `scorer`
    gives further scores of the samples of each window, NaN for a sample without one.
    """
    prompts = [window.prompt for window in windows]
    seeds = tuple(seed + sample for sample in range(config.samples))
    # The first call of a process includes allocation and lazy initialisation, which must not be measured.
    model.rollout([replace(prompts[0], actions=prompts[0].actions[:2])], [seeds[:1]])
    groups = _rollout(model, prompts, [seeds] * len(prompts), batch, advance)
    metrics: list[ViewMetrics] = []
    first_samples: list[np.ndarray] = []
    scores: list[Mapping[str, np.ndarray]] = []
    for window, group in zip(windows, groups, strict=True):
        frames_GTVHWC = model.decode(group)
        scores.append(scorer(group, frames_GTVHWC) if scorer else {})
        metrics.append(_view_metrics(frames_GTVHWC, window.real, window, lpips, config))
        if config.fvd or len(first_samples) < keep:
            first_samples.append(frames_GTVHWC[0])
    # All groups of a batch have the same times: use one group per batch.
    seconds_BT = np.stack([group.cost.seconds_per_frame for group in groups[::batch]])
    return PolicyResult(
        name=policy_name(refresh),
        refresh=refresh,
        metrics=_stack(metrics, windows, config),
        seconds_per_frame=seconds_BT.mean(axis=0),
        seconds=float(seconds_BT.sum()),
        peak_sequence=max(group.cost.peak_sequence for group in groups),
        cache_bytes=max(group.cost.cache_bytes for group in groups),
        frames=np.stack(first_samples)[:keep] if keep else np.empty(0, np.uint8),
        fvd=_fvd(np.stack(first_samples), windows) if config.fvd else None,
        scores={name: mean_known(np.stack([found[name] for found in scores])) for name in scores[0]},
    )


def _fvd(frames_ETVHWC: np.ndarray, windows: Sequence[EvaluationWindow]) -> float:
    from roboalign_ray.metrics.fvd import fvd, load_i3d

    real_ETHWC = np.stack([first_view(window.real) for window in windows])
    return fvd(first_view(frames_ETVHWC), real_ETHWC, load_i3d())


def _rollout(
    model: WorldModel,
    prompts: Sequence[Prompt],
    seeds: Sequence[tuple[int, ...]],
    batch: int,
    advance: Advance | None,
) -> list[Rollout]:
    groups: list[Rollout] = []
    for first in range(0, len(prompts), batch):
        chunk = slice(first, first + batch)
        done = model.rollout(list(prompts[chunk]), list(seeds[chunk]))
        groups += done
        if advance is not None:
            advance(len(done))
    return groups


def _view_metrics(
    frames_GTVHWC: np.ndarray,
    real_TVHWC: np.ndarray,
    window: EvaluationWindow,
    lpips: PerceptualDistance,
    config: EvaluationConfig,
) -> ViewMetrics:
    """Metrics of every view of a clip, or of frames chosen from it.

    Raises:
        UserError: the window has another number of views.
    """
    if frames_GTVHWC.shape[2] != real_TVHWC.shape[1]:
        raise UserError(
            f"{frames_GTVHWC.shape[2]} views predicted, {real_TVHWC.shape[1]} real ones",
            where=window.prompt.prompt_id,
        )
    return {
        name: clip_metrics(frames_GTVHWC[:, :, view], real_TVHWC[:, view], window.start[view], lpips, config)
        for view, name in enumerate(window.names)
    }


def _stack(
    results: Sequence[ViewMetrics], windows: Sequence[EvaluationWindow], config: EvaluationConfig
) -> MetricCurves:
    """One row per window, samples and views averaged."""
    episodes = tuple(window.episode for window in windows)
    names = list(results[0])
    # Views of an episode may have names of their own; what counts is their place.
    by_view = [[list(result.values())[place] for result in results] for place in range(len(names))]
    return MetricCurves.over(
        {name: _curves(of, episodes, config) for name, of in zip(names, by_view, strict=True)}
    )


def _curves(
    results: Sequence[ClipMetrics], episodes: tuple[str, ...], config: EvaluationConfig
) -> MetricCurves:
    """Those of one view."""
    return MetricCurves(
        per_frame={
            name: np.stack([result.per_frame[name].mean(axis=0) for result in results])
            for name in FRAME_METRICS
        },
        freeze_rate=np.array([result.freeze_rate.mean() for result in results]),
        motion=np.array([result.motion.mean() for result in results]),
        resamples=config.bootstrap_resamples,
        episodes=episodes,
    )


def _shuffle_actions(windows: Sequence[EvaluationWindow], rng: np.random.Generator) -> list[np.ndarray]:
    """The windows' actions, permuted over all windows and times."""
    lengths = [window.prompt.horizon for window in windows]
    pooled = rng.permutation(np.concatenate([window.prompt.actions for window in windows]))
    return np.split(pooled, np.cumsum(lengths)[:-1])
