"""Videos of held-out groups, generated beside real. Scorers make them, so pixels stay on the scorers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

from roboalign_ray.foundation.failures import Failed
from roboalign_ray.pipelines.align.groups import Finished
from roboalign_ray.pipelines.cluster.worker_pool import Call, WorkerPool
from roboalign_ray.pipelines.cluster.workforce import Workforce


class Videos:
    """Makes one GIF of each group, in turns of the workforce.

    Args:
        groups: scored groups.

    Attributes:
        made: GIFs by prompt id; failed ones are left out.
    """

    def __init__(self, workforce: Workforce, scorers: WorkerPool, groups: Sequence[Finished]) -> None:
        self._workforce, self._scorers = workforce, scorers
        self._waiting, self._open = deque(groups), 0
        self.made: dict[str, bytes] = {}

    def work(self) -> bool:
        """Send waiting groups to free scorers. Return whether answers are pending."""
        while self._waiting and (worker := self._scorers.free()):
            finished = self._waiting.popleft()
            self._open += 1
            answered = partial(self._answered, finished.record.prompt_id)
            self._workforce.send(worker, "video", finished.reference, then=answered, progresses=False)
        return bool(self._waiting or self._open)

    def _answered(self, prompt: str, call: Call, answer: bytes | Failed) -> None:
        self._open -= 1
        if not isinstance(answer, Failed):
            self.made[prompt] = answer
