"""Windows: the pieces of episodes for training and evaluation. Independent of Ray.

The windows and their order are functions of (seed, epoch) and the store's index, so an interrupted stream can continue
with exactly the next window, and every rank computes its own share without communication.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from roboalign_ray.episodes.action_kinds import accumulate_actions
from roboalign_ray.episodes.episode import Episode, EpisodeError
from roboalign_ray.episodes.store import EpisodeStore, check_action_kinds
from roboalign_ray.episodes.transforms import resize_frames
from roboalign_ray.foundation.failures import UserError

_LEAD = 4  # a window in which a task is completed begins at least length / _LEAD before


@dataclass(frozen=True)
class WindowSpec:
    """Shape of a window.

    Attributes:
        frames: consecutive frames n, after the stride.
        context_range: the context frame is drawn from the window's first frame and this many before it (counted
            after the stride), limited by the episode's start.
        stride: keep every n-th frame; the actions in between are accumulated.
        view: camera view; None takes each episode's first one.
        views: several camera views instead; a window's frames then have an axis for them.
        height, width: pixels; None keeps the store's.
    """

    frames: int
    context_range: int = 0
    stride: int = 1
    view: str | None = None
    views: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1 or self.context_range < 0:
            raise UserError(f"impossible window: {self}", where="windows")

    @property
    def span(self) -> int:
        """Number of the episode's frames that a window covers."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class Window:
    """A context frame, and consecutive frames with the actions between them.

    Attributes:
        context: uint8 [H, W, 3], or [V, H, W, 3] where the spec names views.
        frames: uint8 [n, H, W, 3] or [n, V, H, W, 3].
        actions: float32 [n, A]; actions[t] leads from frame t to frame t+1.
        instruction: instruction of the episode.
        episode_id: id of the episode.
        start: number of the first frame in the episode, before the stride.
    """

    context: np.ndarray
    frames: np.ndarray
    actions: np.ndarray
    instruction: str
    episode_id: str
    start: int


def completing_starts(length: int, done: int | None, span: int) -> range:
    """Starts of an episode's windows of `span` frames in which its task is completed; empty if there is none.

    Args:
        length: number of frames of the episode.
        done: its first frame in which the task is completed; None if it never is, or if this is unknown.
        span: number of frames that a window covers.
    """
    if done is None:
        return range(0)
    latest = min(length - span, max(0, done - span // _LEAD))
    return range(max(0, done - span + 1), latest + 1)


def sample_window(
    episode: Episode, spec: WindowSpec, rng: np.random.Generator, starts: range | None = None
) -> Window:
    """A window at a random start (one of `starts`, if given), with a random context frame before it.

    Raises:
        EpisodeError: the episode is too short, or there is no such view.
    """
    last = episode.length - spec.span
    if last < 0:
        raise EpisodeError(f"{episode.length} frames are fewer than {spec.span}", where=episode.episode_id)
    start = int(rng.choice(starts)) if starts else int(rng.integers(last + 1))
    earliest = max(0, start - spec.context_range * spec.stride)
    return cut_window(episode, spec, start, int(rng.integers(earliest, start + 1)))


def cut_window(episode: Episode, spec: WindowSpec, start: int, context: int) -> Window:
    """The window whose first frame is `start`, with frame `context` before it (numbers before the stride).

    Raises:
        EpisodeError: the window extends past the episode's end, or there is no such view.
    """
    if not 0 <= context <= start <= episode.length - spec.span:
        raise EpisodeError(
            f"no window of {spec.span} frames from frame {start} with context {context}",
            where=episode.episode_id,
        )
    numbers = [context, *range(start, start + spec.span, spec.stride)]
    chosen = _pictures(episode, spec, numbers)
    done = episode.actions[start : start + spec.frames * spec.stride]
    actions = accumulate_actions(
        done, episode.action_kinds, spec.stride, names=episode.action_names, where=episode.episode_id
    )
    return Window(chosen[0], chosen[1:], actions, episode.instruction, episode.episode_id, start)


def _pictures(episode: Episode, spec: WindowSpec, numbers: list[int]) -> np.ndarray:
    """Frames uint8 [n, H, W, 3], or [n, V, H, W, 3] of several views, which take the first one's size by default."""
    height, width = spec.height, spec.width
    seen = []
    for view in spec.views or (spec.view,):
        pictures = episode.view(view)
        height, width = height or pictures.shape[1], width or pictures.shape[2]
        seen.append(resize_frames(pictures[numbers], height, width))
    return np.stack(seen, axis=1) if spec.views else seen[0]


@dataclass(frozen=True)
class Chunk:
    """Windows that are made together, from few enough episodes to hold them all decoded.

    Attributes:
        seed, epoch: determine the draws.
        windows: (episode number in the store, draw number within the episode) in the order of the stream.
    """

    seed: int
    epoch: int
    windows: tuple[tuple[int, int], ...]

    def skip(self, count: int) -> Chunk:
        """The chunk without its first `count` windows."""
        return Chunk(self.seed, self.epoch, self.windows[count:])

    def read(self, store: EpisodeStore, spec: WindowSpec) -> Iterator[Window]:
        """Decode each episode once and cut the windows."""
        episodes: dict[int, Episode] = {}
        for number, draw in self.windows:
            if number not in episodes:
                episodes[number] = store.read(number)
            rng = np.random.default_rng([self.seed, self.epoch, number, draw])
            yield sample_window(episodes[number], spec, rng)


class WindowPlan:
    """The order of windows for one of `world_size` ranks.

    An epoch visits every episode, in a new order, and draws from each as many windows as fit side by side. Ranks take
    episodes in turn; within a chunk, windows of all its episodes are mixed.

    Args:
        store: store of the episodes.
        spec: shape of a window.
        seed: seed of orders and draws.
        split, held_out_fraction: select the episodes.
        shuffle_windows: number of windows mixed together.
        rank, world_size: rank, and number of ranks.

    Raises:
        UserError: no episode of the split is long enough, or there are fewer of them than ranks.
    """

    def __init__(
        self,
        store: EpisodeStore,
        spec: WindowSpec,
        *,
        seed: int,
        split: str = "train",
        held_out_fraction: float | None = None,
        shuffle_windows: int = 512,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of {world_size}", where="windows")
        self._lengths, self._spec, self._seed = store.lengths, spec, seed
        self._rank, self._world_size, self._shuffle = rank, world_size, shuffle_windows
        self._episodes = long_enough(store, spec, split, held_out_fraction)
        if len(self._episodes) < world_size:
            raise UserError(
                f"{len(self._episodes)} episodes in split '{split}' for {world_size} ranks",
                where=str(store.path),
            )

    def chunks(self, epoch: int) -> list[Chunk]:
        """This rank's chunks of an epoch, in order."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self._episodes)
        mine = order[self._rank :: self._world_size]
        chunks: list[Chunk] = []
        open_windows: list[tuple[int, int]] = []
        for position, number in enumerate(mine):
            fit = max(1, self._lengths[number] // (self._spec.frames * self._spec.stride))
            open_windows += [(int(number), draw) for draw in range(fit)]
            if len(open_windows) >= self._shuffle or position == len(mine) - 1:
                rng = np.random.default_rng([self._seed, epoch, self._rank, len(chunks)])
                mixed = tuple(open_windows[place] for place in rng.permutation(len(open_windows)))
                chunks.append(Chunk(self._seed, epoch, mixed))
                open_windows = []
        return chunks


def long_enough(
    store: EpisodeStore, spec: WindowSpec, split: str, fraction: float | None = None
) -> list[int]:
    """Numbers of the split's episodes that hold at least one window.

    Raises:
        UserError: there is none, the split is empty, or the stride skips frames of actions of unknown kinds.
    """
    check_action_kinds(store, spec.stride)
    members = store.split(split, fraction)
    if not members:
        raise empty_split(store, split, fraction)
    numbers = [number for number in members if store.lengths[number] >= spec.span]
    if not numbers:
        raise UserError(
            f"no episode of split '{split}' has the {spec.span} frames of a window",
            where=str(store.path),
            remedy="use shorter windows, a smaller stride, or more episodes",
        )
    return numbers


def empty_split(store: EpisodeStore, split: str, fraction: float | None = None) -> UserError:
    """The error for a split without an episode.

    Args:
        fraction: share of groups held out; None takes the store's.
    """
    share = store.statistics["held_out_fraction"] if fraction is None else fraction
    what, size = "no episode is left to train on at a share of", "smaller"
    if split == "held_out":
        what, size = "no episode is held out at a share of", "larger"
    return UserError(
        f"{what} {float(share):g}",
        where=str(store.path),
        remedy=f"convert with a {size} --held-out and set episodes.held_out_fraction to the same, or add episodes",
    )


def held_out_windows(
    store: EpisodeStore,
    spec: WindowSpec,
    count: int,
    *,
    fraction: float | None = None,
    completing: float = 0.0,
    seed: int = 0,
) -> list[Window]:
    """Windows of held-out episodes, the same at every call, spread evenly over tasks, start states and variants.

    Args:
        store: store of the episodes.
        spec: shape of a window.
        count: number of windows; if there are fewer episodes, they are used again.
        fraction: share of groups held out; None takes the store's.
        completing: share of windows in which the task is completed, if the store has this information.
        seed: of window starts and contexts.

    Raises:
        UserError: no held-out episode is long enough.
    """
    order = spread(store, long_enough(store, spec, "held_out", fraction))
    done: Sequence[int | None] = store.successes() if completing else [None] * len(store)
    windows = []
    for place in range(count):
        number = order[place % len(order)]
        rng = np.random.default_rng([seed, number, place // len(order)])
        starts = completing_starts(store.lengths[number], done[number], spec.span)
        shown = starts if starts and rng.random() < completing else None
        windows.append(sample_window(store.read(number), spec, rng, shown))
    return windows


def spread(store: EpisodeStore, numbers: Sequence[int]) -> list[int]:
    """Episodes reordered so that every prefix covers as many tasks, then as many start states, as possible."""
    tasks: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number in numbers:
        group = store.group_ids[number]
        tasks[group.rsplit("/", 1)[0]][group].append(number)
    turns = [_round_robin(list(groups.values()), first) for first, groups in enumerate(tasks.values())]
    return _round_robin(turns)


def _round_robin(lists: Sequence[Sequence[int]], first: int = 0) -> list[int]:
    """One of each list in turn until all are empty; list k begins at its element (first + k), cyclically."""
    turned = [
        [*items[(first + k) % len(items) :], *items[: (first + k) % len(items)]]
        for k, items in enumerate(lists)
    ]
    longest = max(map(len, turned), default=0)
    return [items[turn] for turn in range(longest) for items in turned if turn < len(items)]
