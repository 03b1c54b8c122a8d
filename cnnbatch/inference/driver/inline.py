"""Predicts in this process: for a handful of images, where starting others would take longer than the work.

A crash or a hang ends the process, so what is under way is noted in the output first; the same
command then takes processes of their own, whose end it survives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cnnbatch.config.compute import Compute
from cnnbatch.errors import UserError
from cnnbatch.inference.driver.retries import Alone, Attempts
from cnnbatch.inference.messages import (
    Fault,
    LoadOrder,
    Ready,
    TunedSettings,
    Withdrawn,
    Work,
    as_error,
)
from cnnbatch.inference.worker_process import WorkerProcess
from cnnbatch.output.folder import Output
from cnnbatch.terminal import interrupts
from cnnbatch.types import Receipt

Answer = TypeVar("Answer")


def require_survivable(compute: Compute, suspects: Collection[int]) -> None:
    """Refuse to predict here shards at which an earlier process ended: it may end this one, too."""
    if compute.pool == "inline" and suspects:
        raise UserError(
            f"an earlier run in one process ended while it was at part {min(suspects)}\n"
            "  what to do: give compute.pool=local once: that survives it and gives the image its row"
        )


def predict_inline(order: LoadOrder, work: Iterable[Work | None], tuned: TunedSettings) -> Iterator[Receipt]:
    """Run every shard in this process, in order; raises UserError or EnvironmentFault."""
    process = WorkerProcess()
    ready = process.load(order)
    if isinstance(ready, Ready) and (sample := tuned.sample(ready, 1)):
        ready = process.measure(sample)
    if isinstance(ready, Fault):
        raise as_error(ready)
    tuned.keep(ready)
    attempts = Attempts()
    try:
        for one in work:
            if one is not None:
                with _noted(order.output, one):
                    yield until_done(process, one, attempts, process.run)
    finally:
        process.close()


def until_done(
    process: WorkerProcess,
    work: Work,
    attempts: Attempts,
    ask: Callable[[Work], Answer | Withdrawn | Fault],
) -> Answer:
    """Return what ``ask`` of a process gives for a shard; an image that fails alone, too, has its failure.

    Raises UserError or EnvironmentFault.
    """
    attempts.requeue(work)
    while (next_work := attempts.next_work()) is not None:
        answer = ask(next_work)
        if isinstance(answer, Withdrawn):
            raise RuntimeError(f"shard {work.shard.index} was withdrawn by nobody")
        if not isinstance(answer, Fault):
            return answer
        if answer.kind != "predict":
            raise as_error(answer)
        attempts.failed(next_work, answer.positions, answer.what)
        _try_suspects(process, attempts)
    raise RuntimeError(f"shard {work.shard.index} was lost between attempts")


def _try_suspects(process: WorkerProcess, attempts: Attempts) -> None:
    while isinstance(question := attempts.next_question(), Alone):
        answer = process.try_alone(question.shard, question.position)
        if isinstance(answer, Fault):
            raise as_error(answer)
        attempts.answered(question, answer)


@contextmanager
def _noted(output: Output, work: Work) -> Iterator[None]:
    note = output.suspect(work.shard.index)
    output.storage.put(note, b"{}")

    def remove() -> None:
        output.storage.delete(note)

    try:
        with interrupts.cleaned_up_by(remove):
            yield
    finally:  # A crash does not come here: then the note stays.
        remove()
