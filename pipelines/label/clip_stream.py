"""Runs the stages of a scoring job on Ray Data: two pools of actors that grow and shrink apart, with bounded memory.

    clips ──blocks of texts──► DecodeStage ×min…max ──blocks of frames──► JudgeStage ×min…max ──► the driver

Ray restarts a lost actor and tries its block again. A block that is lost each time is left out: the driver sees which
clips have no outcome, and tries these one by one.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from queue import Empty, Full, Queue
from typing import Any

import pyarrow as pa

from roboalign_ray.config import JobConfig
from roboalign_ray.judge.serving.http import ServedJudge
from roboalign_ray.pipelines.cluster.runtime import RoleFailure, thread_environment
from roboalign_ray.pipelines.label.clip_reader import clips_as_text
from roboalign_ray.pipelines.label.clips import Clip, ClipInput
from roboalign_ray.pipelines.label.score_stages import DecodeStage, JudgeStage

_AHEAD = 4  # tables that wait for the driver
_LOOK_S = 1.0
_MOST_BLOCKS = 4096  # of an input: more of them cost the driver more than they give


def decoded(
    clips: Sequence[Clip], source: ClipInput, config: JobConfig, *, alone: bool = False
) -> Iterator[pa.Table]:
    """Tables of `DECODED`, in any order.

    Args:
        alone: one clip per block and call, so that a clip that kills its worker takes no other with it.

    Raises:
        RoleFailure: no clip ended for `scoring.no_result_s`.
    """
    return _tables(_decode(clips, source, config, alone), config.scoring.no_result_s, "reading clips")


def judged(
    clips: Sequence[Clip],
    source: ClipInput,
    config: JobConfig,
    opener: Callable[[], ServedJudge],
    *,
    alone: bool = False,
) -> Iterator[pa.Table]:
    """Tables of `JUDGED`, in any order; see `decoded`.

    Args:
        opener: opens the student in its actor.
    """
    scoring, role = config.scoring, config.cluster.scorer
    options: dict[str, Any] = {"num_gpus": role.num_gpus} if role.num_gpus else {}
    if role.resources:
        options["resources"] = dict(role.resources)
    if role.accelerator_type:
        options["accelerator_type"] = role.accelerator_type
    made = _mapped(
        _decode(clips, source, config, alone),
        JudgeStage,
        (opener,),
        (scoring.judge_min, scoring.judge_max),
        config,
        alone,
        batch_size=1 if alone else scoring.batch,
        num_cpus=role.num_cpus,
        runtime_env={"env_vars": thread_environment(role)},
        **options,
    )
    return _tables(made, scoring.no_result_s, "scoring clips")


def _decode(clips: Sequence[Clip], source: ClipInput, config: JobConfig, alone: bool) -> Any:
    import ray.data

    scoring = config.scoring
    size = 1 if alone else max(scoring.clips_per_block, -(-len(clips) // _MOST_BLOCKS))
    texts = [clips_as_text(list(clips[first : first + size])) for first in range(0, len(clips), size)]
    dataset = ray.data.from_items([{"clips": text} for text in texts], override_num_blocks=len(texts))
    _configure(dataset.context, int(scoring.block_mb * 1e6))
    return _mapped(
        dataset,
        DecodeStage,
        (source, scoring.largest_video_pixels, int(scoring.block_mb * 1e6)),
        (scoring.decode_min, scoring.decode_max),
        config,
        alone,
        batch_size=None,
        num_cpus=scoring.decode_cpus,
    )


def _configure(context: Any, block_bytes: int) -> None:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the job tells of progress and losses itself
    context.enable_progress_bars = context.print_on_execution_start = False
    context.enable_rich_progress_bars = False
    context.target_max_block_size = block_bytes
    context.max_errored_blocks = -1  # a lost block is left out; its clips are tried again
    context.execution_options.preserve_order = False
    # A pool that has any work waiting grows at once to what the cluster has room for, not by one actor at a time.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.autoscaling_config.actor_pool_max_upscaling_delta = None


def _mapped(
    dataset: Any,
    stage: type,
    arguments: tuple[Any, ...],
    pool: tuple[int, int],
    config: JobConfig,
    alone: bool,
    **options: Any,
) -> Any:
    """The dataset with one more stage: an autoscaling pool of `pool[0]` to `pool[1]` actors."""
    from ray.data import ActorPoolStrategy

    scoring = config.scoring
    with warnings.catch_warnings():  # Ray Data has no other way yet to bound the tries of a block
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        return dataset.map_batches(
            stage,
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=pool[0],
                max_size=pool[1],
                max_tasks_in_flight_per_actor=1 if alone else scoring.in_flight,
            ),
            max_restarts=-1,
            max_task_retries=scoring.retries,
            **options,
        )


def _tables(dataset: Any, deadline_s: float, what: str) -> Iterator[pa.Table]:
    """Yield the dataset's blocks as they come; the wait for the next one has a deadline."""
    queue: Queue[tuple[pa.Table | None, BaseException | None]] = Queue(_AHEAD)
    ended = threading.Event()

    def put(table: pa.Table | None, error: BaseException | None = None) -> bool:
        while not ended.is_set():
            try:
                queue.put((table, error), timeout=_LOOK_S)
                return True
            except Full:
                continue
        return False

    def pull() -> None:
        try:
            batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            with closing(iter(batches)) as tables:
                for table in tables:
                    if not put(table):
                        return
            put(None)
        except BaseException as error:
            put(None, error)

    threading.Thread(target=pull, name="clips", daemon=True).start()
    try:
        while True:
            try:
                table, error = queue.get(timeout=deadline_s)
            except Empty:
                raise RoleFailure(
                    f"{what}: nothing came for {deadline_s:g} s; a worker is stuck or the cluster has no room for "
                    "it (see 'ray status'), or scoring.no_result_s is too short"
                ) from None
            if error is not None:
                raise error
            if table is None:
                return
            yield table
    finally:
        ended.set()
