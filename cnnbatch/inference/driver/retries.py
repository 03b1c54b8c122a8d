"""Whose fault a failed attempt was, decided by trying the suspects alone: bookkeeping without Ray.

An image is condemned only after it failed twice, the second time by itself in a fresh process that
can still predict other pictures. A shard costs one more attempt for each image that breaks it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.messages import Work
from cnnbatch.types import Failure, Shard

MOST_ATTEMPTS = 5


@dataclass(slots=True)
class _Trial:
    """A shard whose suspects are being tried alone."""

    work: Work
    waiting: int
    failed: dict[int, Failure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alone:
    """One suspect to be tried by itself."""

    shard: Shard
    position: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A picture of random pixels to be tried on ``node``, where ``suspect`` alone ended its process."""

    suspect: Alone
    failure: Failure
    node: str


Question = Alone | Probe


class Attempts:
    """The shards that have to be attempted again, and what has to be tried alone before."""

    def __init__(self) -> None:
        self._again: deque[Work] = deque()
        self._trials: dict[int, _Trial] = {}
        self._count: dict[int, int] = {}
        self._questions: list[Question] = []

    def __len__(self) -> int:
        return len(self._again) + len(self._trials)

    def next_work(self) -> Work | None:
        """Return a shard to be run again; None where there is none."""
        return self._again.popleft() if self._again else None

    def next_question(self, node: str = "") -> Question | None:
        """Return what a process on ``node`` that does nothing else is to try; None where there is nothing."""
        for place, question in enumerate(self._questions):
            if isinstance(question, Alone) or question.node == node:
                return self._questions.pop(place)
        return None

    def probed_nodes(self) -> set[str]:
        """Return the nodes on which something has to be tried, and nowhere else."""
        return {question.node for question in self._questions if isinstance(question, Probe)}

    def give_up_node(self, node: str) -> None:
        """Try again elsewhere what was to be tried on a node that is gone or left out."""
        self._questions = [
            question.suspect if isinstance(question, Probe) and question.node == node else question
            for question in self._questions
        ]

    def requeue(self, work: Work) -> None:
        """Run ``work`` again, as it is: its failure was not its own."""
        self._again.append(work)

    def ask(self, question: Question) -> None:
        """Have ``question`` tried, before others."""
        self._questions.insert(0, question)

    def failed(self, work: Work, suspects: Sequence[int], message: str) -> None:
        """Try ``suspects`` of ``work`` alone, since the process ended or the model raised on them.

        Raises EnvironmentFault where the shard has failed too often without an image to blame.
        """
        fresh = [position for position in suspects if position not in work.condemned]
        if not fresh:
            self.requeue(work)
            return
        count = self._count[work.shard.index] = self._count.get(work.shard.index, 0) + 1
        if count > MOST_ATTEMPTS + len(work.condemned):
            raise EnvironmentFault(
                f"shard {work.shard.index} failed {count} times, though each of its images passes alone: "
                f"{message}",
                "look at the workers' memory and logs; the finished parts stay, the same command continues",
            )
        self._trials[work.shard.index] = _Trial(work, len(fresh))
        self._questions.extend(Alone(work.shard, position) for position in fresh)

    def answered(self, suspect: Alone, failure: Failure | None) -> None:
        """Take what trying ``suspect`` alone gave, in a process that can predict other pictures."""
        trial = self._trials[suspect.shard.index]
        trial.waiting -= 1
        if failure is not None:
            trial.failed[suspect.position] = failure
        if not trial.waiting:
            del self._trials[suspect.shard.index]
            condemned = {**trial.work.condemned, **trial.failed}
            self._again.append(replace(trial.work, condemned=condemned))


NODE_STRIKES = 3


BACKOFFS_S = (1.0, 4.0, 12.0)


class Strikes:
    """The recent attempts on every node, failed by the environment or not."""

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}
        self._recent: deque[bool] = deque(maxlen=2 * NODE_STRIKES)
        self._backoffs = 0
        self.left_out: set[str] = set()

    def succeeded(self, node: str) -> None:
        """Count an attempt on ``node`` that gave its result."""
        self._in_a_row[node] = 0
        self._recent.append(True)
        self._backoffs = 0

    def failed(self, node: str, alive: Collection[str]) -> bool:
        """Count an attempt on ``node`` that its environment ended; return whether to leave it out now.

        A node is left out once it failed `NODE_STRIKES` times in a row while another one works.
        """
        self._in_a_row[node] = self._in_a_row.get(node, 0) + 1
        self._recent.append(False)
        others = [other for other in alive if other != node and other not in self.left_out]
        works_elsewhere = any(self._in_a_row.get(other) == 0 for other in others)
        if self._in_a_row[node] >= NODE_STRIKES and works_elsewhere and node not in self.left_out:
            self.left_out.add(node)
            return True
        return False

    def pause_s(self) -> float | None:
        """Return how long to wait before the next attempt, 0 for not at all; None: give up."""
        if any(self._recent) or len(self._recent) < NODE_STRIKES:
            return 0.0
        if self._backoffs == len(BACKOFFS_S):
            return None
        self._backoffs += 1
        return BACKOFFS_S[self._backoffs - 1]
