"""Injects faults into a running job: kills or stops processes, corrupts replies, exhausts quotas, removes nodes.

    plan ──due──► fault injector ──signals, limits, nodes──► workers
                     ▲                                         │
                     └─ observer: noticed ◄────────────────────┤
                        interceptor: replies corrupted ◄───────┘

The plan and its counters are in the driver, which is not a target. Workers contain no code for this: their processes
receive signals and file-size limits, and their replies are corrupted where the driver forwards references. Only Linux
lets one process set another's limits.
"""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.foundation.faults import FaultPlan, corrupted
from roboalign_ray.pipelines.align.job import CHECKPOINTS, JOURNAL
from roboalign_ray.pipelines.align.loop import Crew
from roboalign_ray.pipelines.chaos.nodes import Nodes
from roboalign_ray.pipelines.chaos.plan import KINDS
from roboalign_ray.pipelines.chaos.record import Injection, Record
from roboalign_ray.pipelines.cluster.runtime import BEAT, RoleFailure
from roboalign_ray.pipelines.cluster.worker_pool import Call, Interceptor, Observer, Worker

_LOOK_S = 0.05  # interval between checks whether a due fault can be injected
_ASK_S = 10.0  # limit for a worker to report its process and node
_TORN = 64  # bytes of a journal line that still fit
_QUOTA = 16 << 10  # bytes that a checkpoint's file may have
_NODE_BACK_S = 60.0  # a removed node is replaced after this time at the latest


Place = tuple[Worker, int]  # a worker slot and its restart count, which together identify one actor


class FaultInjector(Observer, Interceptor):
    """Injects the faults of a plan and records how the job reacts to them.

    Args:
        plan: fault plan whose points are kinds of faults; see `chaos_plan`.
        out: run directory.
        nodes: nodes of the cluster that may be removed, or None.
        seed: seed of the choice of targets.
        seconds: whether the plan counts seconds since the first workers started; if not, it counts scored groups.

    Attributes:
        injections: in order.
        surprises: reasons of worker losses without an injected fault.
        processes: ids of all worker processes that ever ran.
    """

    def __init__(
        self, plan: FaultPlan, out: Path, nodes: Nodes | None = None, seed: int = 0, *, seconds: bool = False
    ) -> None:
        self.plan, self.out, self.nodes, self.seconds = plan, out, nodes, seconds
        self.injections = Record()
        self.surprises: list[str] = []
        self.processes: dict[int, str] = {}
        self._random, self._due = random.Random(seed), deque[str]()
        self._known: dict[Place, tuple[int, str]] = {}  # process and node of every worker that is up
        self._hit: dict[Place, Injection] = {}
        self._vacant: list[tuple[str, Injection]] = []
        self._crew: Crew | None = None
        self._ended = threading.Event()
        self._broken: RoleFailure | None = None  # why no more faults can be injected
        self._next_second = math.inf
        self._limits: tuple[int, int] | None = None  # the driver's original limits, while they are lowered

    @property
    def complete(self) -> bool:
        """Whether all planned faults have been injected."""
        return len(self.injections) == len(self.plan.planned)

    @property
    def share(self) -> float:
        """The share of the plan's groups or seconds that has passed."""
        gone_by = max(self.plan.report().visits.values(), default=0)
        return min(1.0, gone_by / max(fault.call for fault in self.plan.planned))

    @contextmanager
    def attached(self, crew: Crew) -> Iterator[None]:
        """Inject faults into these workers during the block.

        Raises:
            RoleFailure: a removed node could not be replaced.
        """
        self._crew, self._known, self._vacant = crew, {}, []
        self._ended.clear()
        self._next_second = min(self._next_second, time.monotonic() + 1.0)  # the clock of a soak never stops
        crew.workforce.observers.append(self)
        crew.workforce.interceptors.append(self)
        thread = threading.Thread(target=self._inject_when_due, name="chaos", daemon=True)
        thread.start()
        try:
            yield
            self.injections.mark_moot()
        finally:
            self._ended.set()
            thread.join()
            crew.workforce.observers.remove(self)
            crew.workforce.interceptors.remove(self)
        if self._broken:
            raise self._broken

    def explains(self, error: BaseException) -> bool:
        """Whether an injected full disk ended the job. If so, the disk limit is lifted."""
        full = [s for s in self.injections if KINDS[s.kind].action == "quota" and s.open]
        for injection in full:
            injection.notice(f"the run ends: {error}")
        self.injections.mark_moot()
        self._lift_limits()
        return bool(full)

    # --- events of the job, in the driver's thread ---------------------------------------------------------------

    def reply(self, call: Call, answer: Any) -> Any:
        """Count scored groups, corrupt a reply if that is due, and record that a corrupted reply was refused."""
        held_out = call.about.get("held_out", False)
        if isinstance(answer, Failed):
            if answer.kind == "weights":
                self.injections.notice("weights", answer.reason)
        elif call.what == "take_buckets":
            self.injections.mark_moot("weights")  # the previous weight version is no longer used
            if self._take_due("weights"):
                self.injections.add("weights", "bucket 1")
                call.values[0] = ray.put(_flipped(call.values[0], len(self.injections)))
            elif self._take_due("journal"):
                self._fill_disk()
        elif call.what == "rollout" and not held_out:
            self._rolled_out(call)
        elif call.what == "score" and not held_out and self._take_due("scores"):
            self.injections.add("scores", f"group {_numbers(call)[0]}").groups = set(_numbers(call))
            record, *others = answer
            first, *seeds = record.seeds
            return [replace(record, seeds=(first ^ 1, *seeds)), *others]
        elif call.what == "score":
            for record in answer:
                if all(isinstance(score, Failed) for score in record.scores):
                    self.injections.notice("tokens", record.scores[0].reason)
            if not held_out and not self.seconds:
                self._count(len(answer))
        return answer

    def _rolled_out(self, call: Call) -> None:
        numbers = _numbers(call)
        for injection in self.injections:
            if injection.kind == "scores" and injection.groups & set(numbers):
                injection.notice("made again")
        if self._take_due("tokens"):
            self.injections.add("tokens", f"group {numbers[0]}").groups = {numbers[0]}
            call.values[0] = ray.put(_with_invalid_payload(ray.get(call.values[0], timeout=_ASK_S)))

    def lost(self, worker: Worker, failed: Failed) -> None:
        """Record that an injected fault was noticed, or that a worker was lost without one."""
        in_flight = {number for call in worker.calls for number in _numbers(call)}
        injection = self._hit.get((worker, worker.restarts))
        if injection is None:
            self.surprises.append(failed.reason)
        else:
            injection.notice(failed.reason)
            injection.groups |= in_flight
            self._vacant.append((worker.pool.name, injection))
        if worker.pool.together:  # everything in flight is done again
            self.injections.mark_moot("weights", "tokens", "scores")
        for injection in self.injections:
            if injection.kind == "tokens" and injection.groups <= in_flight:
                injection.mark_moot()

    # --- injection, in a separate thread, since the driver's thread may be waiting for a checkpoint -----------------

    def _inject_when_due(self) -> None:
        try:
            self._watch()
        except RoleFailure as error:
            self._broken = error

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            while self.seconds and time.monotonic() >= self._next_second:
                self._next_second += 1.0
                self._count(1)
            self._find_new_workers()
            for kind in list(self._due):
                if KINDS[kind].roles and self._inject_into_worker(kind):
                    self._due.remove(kind)
                    break
                if kind == "node" and self._replace_node():
                    self._due.remove(kind)
                    break

    def _count(self, visits: int) -> None:
        for _ in range(visits):
            self._due += [kind for kind in KINDS if self.plan.visit(kind)]

    def _take_due(self, kind: str) -> bool:
        if kind in self._due:
            self._due.remove(kind)
            return True
        return False

    def _find_new_workers(self) -> None:
        """Record process and node of workers that have come up."""
        assert self._crew is not None
        workers = [w for pool in list(self._crew.workforce.pools) for w in list(pool.workers)]
        for place, injection in list(self._hit.items()):
            if place[0] not in workers:  # ended together with other workers
                injection.mark_moot()
        for worker in workers:
            place = (worker, worker.restarts)
            if not worker.up or place in self._known or place in self._hit:
                continue
            reference = worker.actor.__ray_call__.options(concurrency_group=BEAT).remote(_whereabouts)
            with suppress(RayError):  # it was just lost
                self._known[place] = ray.get(reference, timeout=_ASK_S)
                self.processes[self._known[place][0]] = worker.name
                self._replace(worker.pool.name)

    def _replace(self, role: str) -> None:
        """Count a new worker as the replacement for the role's earliest loss."""
        for vacancy in self._vacant:
            if vacancy[0] == role:
                vacancy[1].replaced += 1
                self._vacant.remove(vacancy)
                return

    def _inject_into_worker(self, kind: str) -> bool:
        """Inject a fault into a worker, if there is a suitable target now; return whether there was."""
        mid_checkpoint = kind in ("checkpoint", "quota")
        if mid_checkpoint and not self._writing():
            return False
        fit = [
            (place, process)
            for place, (process, _) in self._known.items()
            if place[0].pool.name in KINDS[kind].roles
            and place not in self._hit
            and place[0].up
            and place[0].restarts == place[1]
            and (place[0].calls or mid_checkpoint)
        ]
        if not fit:
            return False
        place, process = self._random.choice(fit)
        self._hit[place] = self.injections.add(kind, place[0].name)
        if kind == "quota":
            hard = resource.prlimit(process, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(process, resource.RLIMIT_FSIZE, (_QUOTA, hard))
            return True
        with suppress(ProcessLookupError):  # the job itself has just ended it
            os.kill(process, signal.SIGSTOP if KINDS[kind].action == "hang" else signal.SIGKILL)
        return True

    def _writing(self) -> bool:
        return any((self.out / CHECKPOINTS).glob(".writing-*/*"))

    def _replace_node(self) -> bool:
        """Remove a node with workers, and add one when the job has noticed; return whether a node could be removed."""
        assert self.nodes is not None
        homes = {place: node for place, (_, node) in self._known.items() if place not in self._hit}
        removable = sorted(set(homes.values()) & self.nodes.removable())
        if not removable:
            return False
        node = self._random.choice(removable)
        injection = self.injections.add("node", f"node {node[:8]}")
        self._hit |= {place: injection for place, home in homes.items() if home == node}
        self.nodes.remove(node)
        ends = time.monotonic() + _NODE_BACK_S
        while injection.open and time.monotonic() < ends and not self._ended.wait(_LOOK_S):
            pass
        self.nodes.add()
        return True

    # --- the driver's disk ------------------------------------------------------------------------------------------

    def _fill_disk(self) -> None:
        """Limit the journal to a few more bytes, so that its next line is truncated."""
        path = self.out / JOURNAL
        size = path.stat().st_size if path.exists() else 0
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + _TORN, self._limits[1]))
        self.injections.add("journal", JOURNAL)

    def _lift_limits(self) -> None:
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
            self._limits = None


def alive(process: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _whereabouts(_actor: Any) -> tuple[int, str]:
    return os.getpid(), ray.get_runtime_context().get_node_id()


def _numbers(call: Call) -> list[int]:
    """Numbers of the training groups in a call."""
    return [] if call.about.get("held_out") else list(call.about.get("groups", []))


def _flipped(reference: Any, seed: int) -> np.ndarray:
    """A bucket with one bit flipped."""
    return np.frombuffer(corrupted(ray.get(reference, timeout=_ASK_S).tobytes(), seed), np.uint8)


def _with_invalid_payload(rollouts: list[Any]) -> list[Any]:
    """The rollouts with a corrupted first one: bit 6 of the last byte of its payload's first number is flipped.

    A token becomes a code outside any vocabulary, the head of packed frames one of no format; a float gets another
    order of magnitude. The payload is not read again here: the scorer must notice.
    """
    first, *others = rollouts
    payload = _flipped_number(first.payload)
    assert payload is not None  # a payload holds arrays
    return [replace(first, payload=payload), *others]


def _flipped_number(value: Any) -> Any | None:
    """A dataclass, tuple or array with its first number flipped; None if it holds no array."""
    if isinstance(value, np.ndarray):
        if not value.size:
            return None
        values = value.copy()
        values.reshape(-1)[:1].view(np.uint8)[-1] ^= 0x40
        return values
    if isinstance(value, tuple):
        for place, part in enumerate(value):
            if (changed := _flipped_number(part)) is not None:
                return (*value[:place], changed, *value[place + 1 :])
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if (changed := _flipped_number(getattr(value, field.name))) is not None:
                return replace(value, **{field.name: changed})
    return None
