"""Strikes at a running job from outside: processes killed or stopped, replies spoiled, quotas reached, nodes removed.

    plan ──due──► striker ──signals, limits, nodes──► workers
                     ▲                                   │
                     └─ observer: noticed ◄──────────────┤
                        interceptor: replies spoiled ◄───┘

The plan and its counters live in the driver, which is no target. Workers carry no code for this: their processes are
struck by signals and file-size limits, their replies where the driver passes references on. Only Linux lets one process
set another's limits.
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
from dataclasses import replace
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
from roboalign_ray.pipelines.chaos.record import Record, Strike
from roboalign_ray.pipelines.cluster.runtime import BEAT, RoleFailure
from roboalign_ray.pipelines.cluster.worker_pool import Call, Interceptor, Observer, Worker

_LOOK_S = 0.05  # between two looks for a moment that suits a fault
_ASK_S = 10.0  # for a worker to say where it runs
_TORN = 64  # bytes of a journal's line that still fit
_QUOTA = 16 << 10  # bytes that a checkpoint's file may have
_NODE_BACK_S = 60.0  # a removed node is replaced at the latest then


Place = tuple[Worker, int]  # a worker's place, and how many have been in it before


class Striker(Observer, Interceptor):
    """Strikes what a plan says, and keeps a record of what the job made of it.

    Args:
        plan: of kinds as points; see `chaos_plan`.
        out: run directory.
        nodes: of the cluster, where some may be removed.
        seed: of the choice of targets.
        seconds: whether the plan counts seconds from the first crew on; otherwise groups that came back scored.

    Attributes:
        strikes: in order.
        surprises: workers that were lost although nothing had struck them.
        processes: ids of all workers' processes there ever were.
    """

    def __init__(
        self, plan: FaultPlan, out: Path, nodes: Nodes | None = None, seed: int = 0, *, seconds: bool = False
    ) -> None:
        self.plan, self.out, self.nodes, self.seconds = plan, out, nodes, seconds
        self.strikes = Record()
        self.surprises: list[str] = []
        self.processes: dict[int, str] = {}
        self._random, self._due = random.Random(seed), deque[str]()
        self._known: dict[Place, tuple[int, str]] = {}  # process and node of every worker that is up
        self._struck: dict[Place, Strike] = {}
        self._vacant: list[tuple[str, Strike]] = []
        self._crew: Crew | None = None
        self._ended = threading.Event()
        self._broken: RoleFailure | None = None  # why nothing more can be struck
        self._next_second = math.inf
        self._limits: tuple[int, int] | None = None  # the driver's own, while they are lowered

    @property
    def spent(self) -> bool:
        """Whether all that was planned has been struck."""
        return len(self.strikes) == len(self.plan.planned)

    @property
    def share(self) -> float:
        """Of the plan's groups or seconds, those that have gone by."""
        gone_by = max(self.plan.report().visits.values(), default=0)
        return min(1.0, gone_by / max(fault.call for fault in self.plan.planned))

    @contextmanager
    def beside(self, crew: Crew) -> Iterator[None]:
        """Strikes at this crew as long as the block lasts.

        Raises:
            RoleFailure: a node could not be added in the place of one that was removed.
        """
        self._crew, self._known, self._vacant = crew, {}, []
        self._ended.clear()
        self._next_second = min(self._next_second, time.monotonic() + 1.0)  # a soak's clock never stops
        crew.workforce.observers.append(self)
        crew.workforce.interceptors.append(self)
        thread = threading.Thread(target=self._strike_when_due, name="chaos", daemon=True)
        thread.start()
        try:
            yield
            self.strikes.forgo()
        finally:
            self._ended.set()
            thread.join()
            crew.workforce.observers.remove(self)
            crew.workforce.interceptors.remove(self)
        if self._broken:
            raise self._broken

    def explains(self, error: BaseException) -> bool:
        """Whether a job's end is what a full disk does; the disk is then empty again."""
        full = [s for s in self.strikes if KINDS[s.kind].action == "quota" and s.open]
        for strike in full:
            strike.notice(f"the run ends: {error}")
        self.strikes.forgo()
        self._lift_limits()
        return bool(full)

    # --- what the job says, in the driver's thread ---------------------------------------------------------------

    def reply(self, call: Call, answer: Any) -> Any:
        """Counts scored groups; spoils a reply where that is due; notices that a spoiled one was refused."""
        held_out = call.about.get("held_out", False)
        if isinstance(answer, Failed):
            if answer.kind == "weights":
                self.strikes.notice("weights", answer.reason)
        elif call.what == "take_buckets":
            self.strikes.forgo("weights")  # nobody takes the version before any more
            if self._take_due("weights"):
                self.strikes.add("weights", "bucket 1")
                call.values[0] = ray.put(_flipped(call.values[0], len(self.strikes)))
            elif self._take_due("journal"):
                self._fill_disk()
        elif call.what == "rollout" and not held_out:
            self._rolled_out(call)
        elif call.what == "score" and not held_out and self._take_due("scores"):
            self.strikes.add("scores", f"group {_numbers(call)[0]}").groups = set(_numbers(call))
            record, *others = answer
            first, *seeds = record.seeds
            return [replace(record, seeds=(first ^ 1, *seeds)), *others]
        elif call.what == "score":
            for record in answer:
                if all(isinstance(score, Failed) for score in record.scores):
                    self.strikes.notice("tokens", record.scores[0].reason)
            if not held_out and not self.seconds:
                self._count(len(answer))
        return answer

    def _rolled_out(self, call: Call) -> None:
        numbers = _numbers(call)
        for strike in self.strikes:
            if strike.kind == "scores" and strike.groups & set(numbers):
                strike.notice("made again")
        if self._take_due("tokens"):
            self.strikes.add("tokens", f"group {numbers[0]}").groups = {numbers[0]}
            call.values[0] = ray.put(_spoiled(ray.get(call.values[0], timeout=_ASK_S)))

    def lost(self, worker: Worker, failed: Failed) -> None:
        """A strike has been noticed, or there was none."""
        hands = {number for call in worker.calls for number in _numbers(call)}
        strike = self._struck.get((worker, worker.restarts))
        if strike is None:
            self.surprises.append(failed.reason)
        else:
            strike.notice(failed.reason)
            strike.groups |= hands
            self._vacant.append((worker.pool.name, strike))
        if worker.pool.together:  # all that was under way is made again
            self.strikes.forgo("weights", "tokens", "scores")
        for spoiled in self.strikes:
            if spoiled.kind == "tokens" and spoiled.groups <= hands:
                spoiled.forgo()

    # --- moments, in a thread of its own: the driver's may be waiting for a checkpoint ------------------------------

    def _strike_when_due(self) -> None:
        try:
            self._watch()
        except RoleFailure as error:
            self._broken = error

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            while self.seconds and time.monotonic() >= self._next_second:
                self._next_second += 1.0
                self._count(1)
            self._meet()
            for kind in list(self._due):
                if KINDS[kind].roles and self._strike_worker(kind):
                    self._due.remove(kind)
                    break
                if kind == "node" and self._strike_node():
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

    def _meet(self) -> None:
        """Learn process and node of workers that have come up."""
        assert self._crew is not None
        workers = [w for pool in list(self._crew.workforce.pools) for w in list(pool.workers)]
        for place, strike in list(self._struck.items()):
            if place[0] not in workers:  # ended together with others
                strike.forgo()
        for worker in workers:
            place = (worker, worker.restarts)
            if not worker.up or place in self._known or place in self._struck:
                continue
            asked = worker.actor.__ray_call__.options(concurrency_group=BEAT).remote(_whereabouts)
            with suppress(RayError):  # it was lost a moment ago
                self._known[place] = ray.get(asked, timeout=_ASK_S)
                self.processes[self._known[place][0]] = worker.name
                self._replace(worker.pool.name)

    def _replace(self, role: str) -> None:
        """A new worker of a role takes the oldest empty place."""
        for vacancy in self._vacant:
            if vacancy[0] == role:
                vacancy[1].replaced += 1
                self._vacant.remove(vacancy)
                return

    def _strike_worker(self, kind: str) -> bool:
        """Whether the moment and a target suited."""
        mid_checkpoint = kind in ("checkpoint", "quota")
        if mid_checkpoint and not self._writing():
            return False
        fit = [
            (place, process)
            for place, (process, _) in self._known.items()
            if place[0].pool.name in KINDS[kind].roles
            and place not in self._struck
            and place[0].up
            and place[0].restarts == place[1]
            and (place[0].calls or mid_checkpoint)
        ]
        if not fit:
            return False
        place, process = self._random.choice(fit)
        self._struck[place] = self.strikes.add(kind, place[0].name)
        if kind == "quota":
            hard = resource.prlimit(process, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(process, resource.RLIMIT_FSIZE, (_QUOTA, hard))
            return True
        with suppress(ProcessLookupError):  # ended by the job itself a moment ago
            os.kill(process, signal.SIGSTOP if KINDS[kind].action == "hang" else signal.SIGKILL)
        return True

    def _writing(self) -> bool:
        return any((self.out / CHECKPOINTS).glob(".writing-*/*"))

    def _strike_node(self) -> bool:
        """Remove a node with workers on it, and add another when that has been noticed."""
        assert self.nodes is not None
        homes = {place: node for place, (_, node) in self._known.items() if place not in self._struck}
        removable = sorted(set(homes.values()) & self.nodes.removable())
        if not removable:
            return False
        node = self._random.choice(removable)
        strike = self.strikes.add("node", f"node {node[:8]}")
        self._struck |= {place: strike for place, home in homes.items() if home == node}
        self.nodes.remove(node)
        ends = time.monotonic() + _NODE_BACK_S
        while strike.open and time.monotonic() < ends and not self._ended.wait(_LOOK_S):
            pass
        self.nodes.add()
        return True

    # --- the driver's own disk --------------------------------------------------------------------------------------

    def _fill_disk(self) -> None:
        """From here on the journal takes a few bytes more, so that a line is torn."""
        path = self.out / JOURNAL
        size = path.stat().st_size if path.exists() else 0
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + _TORN, self._limits[1]))
        self.strikes.add("journal", JOURNAL)

    def _lift_limits(self) -> None:
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
            self._limits = None


def alive(process: int) -> bool:
    """Whether a process is there; one that has ended and waits to be reaped is not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _whereabouts(_actor: Any) -> tuple[int, str]:
    return os.getpid(), ray.get_runtime_context().get_node_id()


def _numbers(call: Call) -> list[int]:
    """Numbers of the groups of training in a call."""
    return [] if call.about.get("held_out") else list(call.about.get("groups", []))


def _flipped(reference: Any, seed: int) -> np.ndarray:
    """A bucket with one bit turned over."""
    return np.frombuffer(corrupted(ray.get(reference, timeout=_ASK_S).tobytes(), seed), np.uint8)


def _spoiled(rollouts: list[Any]) -> list[Any]:
    """Rollouts of which the first is damaged: bit 6 of the last byte of its payload's first number is turned over.

    It makes a code that no tokenizer knows of a token, and of a float a number of another order of magnitude.
    """
    first, *others = rollouts
    header, arrays = first.payload.to_arrays()
    name, values = next((name, values) for name, values in arrays.items() if values.size)
    values = values.copy()
    values.reshape(-1)[:1].view(np.uint8)[-1] ^= 0x40
    payload = type(first.payload).from_arrays(header, {**arrays, name: values})
    return [replace(first, payload=payload), *others]
