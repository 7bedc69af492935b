"""Converts a folder of recorded episodes into a store: reads, subsamples, resizes, writes; counts unusable ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from roboalign_ray.episodes.action_kinds import ActionFindings, check_stride
from roboalign_ray.episodes.action_option import declare
from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.shaping import Shaping
from roboalign_ray.episodes.sources.base import EpisodeSource, Quarantined
from roboalign_ray.episodes.sources.folder import FolderSource, open_folder
from roboalign_ray.episodes.sources.lerobot import LeRobotSource
from roboalign_ray.episodes.sources.rlds import RldsSource
from roboalign_ray.episodes.store import StoreSummary, write_store
from roboalign_ray.episodes.transforms import (
    FITS,
    Fit,
    resize_episode,
    stride_episode,
    target_size,
    unwrap_episode,
)
from roboalign_ray.foundation.failures import UserError, printable, raise_if_host
from roboalign_ray.foundation.storage.folder_lock import one_writer
from roboalign_ray.foundation.storage.shards import StoreCard
from roboalign_ray.foundation.telemetry.progress import Progress


@dataclass(frozen=True)
class ConvertOptions:
    """Options of a conversion.

    Attributes:
        format: "auto", one of the formats of `open_folder`, or another source's name.
        views: views to keep; empty keeps all.
        height, width: pixels; None keeps the source's size, or follows from the other one.
        fit: what to do when the aspect ratio changes: "stretch", "crop" or "pad".
        stride: keep every n-th frame; the actions in between are accumulated.
        fps: alternatively the target frame rate, which must divide the source's; None keeps it.
        limit: stop after this many usable episodes; None takes all.
        action_kind: the kinds of the action's dimensions (see `action_option.declare`); "" uses the source's.
        source_fps: frame rate of an RLDS dataset with an unknown rate.
        held_out_fraction: share of episode groups that the action statistics leave out.
        overwrite: replace an existing store.
    """

    format: str = "auto"
    views: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    fit: Fit = "stretch"
    stride: int = 1
    fps: float | None = None
    limit: int | None = None
    action_kind: str = ""
    source_fps: float | None = None
    held_out_fraction: float = 0.1
    overwrite: bool = False

    @property
    def shaping(self) -> Shaping:
        """The shaping that the source applies to frames while it decodes them."""
        return Shaping(self.stride, self.fps, self.height, self.width, self.fit)


@one_writer
def convert(
    source: Path, out: Path, options: ConvertOptions, *, command: str = "", console: Console | None = None
) -> StoreSummary:
    """Convert a folder of episodes into a store. An episode that cannot be used is set aside with its reason.

    Args:
        source: folder in one of the formats of `open_folder`.
        out: folder of the store; it appears only when everything is written.
        options: see `ConvertOptions`.
        command: the command line, for the dataset card.
        console: console for the progress; None shows it on standard error.

    Raises:
        UserError: an option, the source or the path of the store cannot be used, no episode can be used, or frames are
            to be skipped but the kinds of the actions are unknown.
        HostError: the disk or the temporary folder is full, memory is short, or access is denied; nothing is written.
    """
    _check(options)
    episodes = open_folder(
        source, options.format, views=options.views, fps=options.source_fps, shaping=options.shaping
    )
    actions = _actions(episodes, options, source)
    card = StoreCard(
        title=f"Episodes of {episodes.name}",
        summary=f"Converted from `{source.resolve().name}`; the episodes' licence is that of their source.",
        command=command,
        settings={key: value for key, value in asdict(options).items() if value not in (None, (), False, "")},
    )
    remarks: Counter[str] = Counter()
    try:
        summary = write_store(
            _converted(episodes, options, actions, remarks, console),
            out,
            card=card,
            held_out_fraction=options.held_out_fraction,
            overwrite=options.overwrite,
        )
        counted = [f"{remark} ({n} episode{'s' * (n != 1)})" for remark, n in remarks.items()]
        notes = [*getattr(episodes, "notes", ()), *(f"actions: {line}" for line in actions.lines()), *counted]
        return replace(summary, notes=tuple(map(printable, notes)))
    except OSError as error:
        raise_if_host(error, where=str(out))
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=str(out), remedy="choose another place"
        ) from error


def _actions(source: FolderSource, options: ConvertOptions, where: Path) -> ActionFindings:
    """What the actions are, from the source and the options.

    Raises:
        UserError: the option does not fit, or frames are to be skipped but a kind is unknown.
    """
    findings = (
        declare(source.action_findings, options.action_kind)
        if options.action_kind
        else source.action_findings
    )
    shaping = options.shaping
    if isinstance(source, LeRobotSource | RldsSource):  # other sources have a rate per episode
        try:
            shaping = shaping.of_rate(source.fps, str(where))
        except EpisodeError:  # reported for each episode
            return findings
    check_stride(findings.names, findings.kinds, shaping.stride, where=str(where))
    return findings


def _check(options: ConvertOptions) -> None:
    target_size((2, 2), options.height, options.width)
    if options.fit not in FITS:
        raise UserError(f"unknown fit '{options.fit}'", where="--fit", remedy=f"one of {', '.join(FITS)}")
    if options.stride < 1:
        raise UserError(f"stride is {options.stride}", where="--stride", remedy="1 keeps every frame")
    if options.fps is not None and (not 0 < options.fps < math.inf or options.stride != 1):
        sound = 0 < options.fps < math.inf
        fault = "--stride says the same in another way" if sound else f"frame rate is {options.fps:g}"
        raise UserError(fault, where="--fps", remedy="give one of them, above 0")
    if options.source_fps is not None and not 0 < options.source_fps < math.inf:
        raise UserError(
            f"frame rate is {options.source_fps:g}", where="--source-fps", remedy="give one above 0"
        )
    if options.limit is not None and options.limit < 1:
        raise UserError(
            f"limit is {options.limit}", where="--limit", remedy="leave it out to take every episode"
        )
    if not 0.0 < options.held_out_fraction < 1.0:
        raise UserError(
            f"share is {options.held_out_fraction:g}", where="--held-out", remedy="between 0 and 1"
        )


def _converted(
    source: EpisodeSource,
    options: ConvertOptions,
    actions: ActionFindings,
    remarks: Counter[str],
    console: Console | None,
) -> Iterator[Episode | Quarantined]:
    """Yield the episodes for the store; count changes that the user should know in `remarks`."""
    usable = quarantined = 0
    total = len(source) if isinstance(source, Sized) and options.limit is None else None
    with Progress(f"converting {source.name}", total, unit="episode", console=console) as progress:
        for item in source.episodes():
            if isinstance(item, Episode):
                item = _transformed(item, options, actions)
            if isinstance(item, Episode):
                remarks.update(_remarks(item))
            usable += isinstance(item, Episode)
            quarantined += isinstance(item, Quarantined)
            yield item
            progress.advance(usable=usable, quarantined=quarantined)
            if usable == options.limit:
                return


def _remarks(episode: Episode) -> Iterator[str]:
    for name in episode.provenance.get("unwrapped", ()):
        yield f"actions: {name}: jumps by full turns taken out"
    for view, found in episode.provenance.get("frames", {}).items():
        yield f"frames of {view}: {found}"


def _transformed(episode: Episode, options: ConvertOptions, actions: ActionFindings) -> Episode | Quarantined:
    try:
        episode = unwrap_episode(replace(episode, action_kinds=actions.kinds))
        stride = options.shaping.of_rate(episode.fps, episode.episode_id).stride
        return resize_episode(stride_episode(episode, stride), options.height, options.width, options.fit)
    except EpisodeError as error:
        return Quarantined(episode.episode_id, error.what)
