"""Trains on Ray, the only importer of Ray Train: a worker a GPU, or a worker a CPU where there is none.

Ray Train replaces lost workers and forms the group anew; where a training stands is ours to keep, as
checkpoints in the output, so that also the loss of the driver costs no more than the steps since the last.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cnnbatch.cluster import session
from cnnbatch.config.compute import Compute, Workers
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import counted
from cnnbatch.training.messages import TrainingMessage, TrainingOrder

POLL_S = 0.3
ANSWER_S = 60.0
GOES_ON = "look at the machines; the same command goes on from the last checkpoint"
_PATIENCE = {
    # How long Ray Train waits for a group's places before it counts anew what there is: a minute by
    # default. Of a node that was just lost it believes for a moment that it is still there, and would wait
    # all of that.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    # How long a worker may be silent before the group is formed anew: ten minutes by default.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
}


class _Mailbox:
    """An actor that holds what the first worker sends until the driver takes it."""

    def __init__(self) -> None:
        self._messages: deque[TrainingMessage] = deque()

    def put(self, message: TrainingMessage) -> None:
        self._messages.append(message)

    def take(self) -> list[TrainingMessage]:
        taken = [*self._messages]
        self._messages.clear()
        return taken


def fit(order: TrainingOrder, note: Callable[[str], object]) -> Iterator[TrainingMessage]:
    """Train on Ray and yield what the first worker sends; raises UserError and EnvironmentFault.

    ``note`` is called with which Ray that is.
    """
    compute = order.job.compute
    if order.decision.strategy != "scratch":
        order.job.task.require_weights_to_train()  # Else Ray Train would try again and again.
    session.connect(compute, note)
    with session.faults():
        yield from _fit(order, group_for(compute))


def _fit(order: TrainingOrder, group: WorkerGroup) -> Iterator[TrainingMessage]:
    compute = order.job.compute
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    of_mailbox: Any = ray.remote(_Mailbox)
    mailbox = of_mailbox.options(num_cpus=0, scheduling_strategy=here).remote()
    with tempfile.TemporaryDirectory(prefix="cnnbatch-ray-train-", ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"order": order, "mailbox": mailbox, "folder": os.getcwd()},
            scaling_config=group.config(),
            torch_config=TorchConfig(backend="gloo" if compute.device == "cpu" else None),
            run_config=RunConfig(
                storage_path=folder, failure_config=FailureConfig(max_failures=order.job.train.max_failures)
            ),
        )
        running, heard, ended = _Running(trainer), time.monotonic(), False
        patience_s = max(ANSWER_S, compute.start_timeout_s)  # The mailbox is a process that has to start.
        while running.is_alive():
            session.require_alive()
            messages, patience_s = _taken(mailbox, patience_s), ANSWER_S
            if messages:
                heard, ended = time.monotonic(), messages[-1].kind == "end"
            yield from messages
            silent_s = time.monotonic() - heard
            if ended and silent_s > ANSWER_S:
                raise EnvironmentFault(f"Ray Train has not ended its run for {silent_s:.0f} s", GOES_ON)
            if silent_s > compute.start_timeout_s:
                _require_room(group)
            time.sleep(POLL_S)
        yield from _taken(mailbox, ANSWER_S)
        running.result()


def _taken(mailbox: Any, patience_s: float) -> list[TrainingMessage]:
    """Return what the mailbox holds; raises EnvironmentFault where it does not answer."""
    try:
        found: list[TrainingMessage] = ray.get(mailbox.take.remote(), timeout=patience_s)
    except GetTimeoutError as error:
        raise EnvironmentFault(
            f"the process on this machine that takes the training's messages has not answered for "
            f"{patience_s:g} s",
            "give the same command again when the machine is less busy; it goes on from the last checkpoint",
        ) from error
    return found


def _require_room(group: WorkerGroup) -> None:
    """Stop where the workers that are needed at least will never be: Ray Train would wait for ever."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    lacking = [
        f"{group.least * amount:g} {name}, there are {there.get(name, 0.0):g}"
        for name, amount in group.resources.items()
        if there.get(name, 0.0) < group.least * amount
    ]
    if lacking:
        raise EnvironmentFault(
            f"the training needs at least {' and '.join(lacking)}",
            "start nodes, or ask for fewer in compute.workers; the same command then goes on",
        )


class _Running(threading.Thread):
    """A trainer at work in a thread, since its `fit` waits for the end."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._trainer = trainer
        self._fault: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # It is raised by whoever waits for the end.
            self._fault = error

    def result(self) -> None:
        """Raise what ended it."""
        if self._fault is None:
            return
        if not isinstance(self._fault, TrainingFailedError):
            what = (
                "its controller ended" if isinstance(self._fault, RayActorError) else _last_line(self._fault)
            )
            raise EnvironmentFault(f"the training was ended by Ray Train: {what}", GOES_ON)
        causes = getattr(self._fault, "worker_failures", {}).values()
        for cause in causes:
            inner = getattr(cause, "cause", None) or cause
            if isinstance(inner, UserError | EnvironmentFault):
                raise inner
        first = next(iter(causes), self._fault)
        raise EnvironmentFault(f"the training was ended by its workers: {_last_line(first)}", GOES_ON)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """How many workers train, as many as there are between ``least`` and ``most``, and what each gets."""

    least: int
    most: int
    use_gpu: bool
    resources: Mapping[str, float]

    def config(self) -> ScalingConfig:
        """Return it as Ray Train has it."""
        number: Any = self.least if self.least == self.most else (self.least, self.most)
        return ScalingConfig(
            num_workers=number, use_gpu=self.use_gpu, resources_per_worker=dict(self.resources)
        )


def group_for(compute: Compute) -> WorkerGroup:
    """Return the group for a job: a GPU a worker where there are some, else CPUs."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = there.get("GPU", 0.0), int(there.get("CPU", 1))
    use_gpu = gpus > 0 and (compute.device in ("auto", "cuda") or compute.gpus_per_worker != "auto")
    each = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    most = int(gpus) if use_gpu else max(1, cpus // each)
    least, largest = 1, most  # However many there are, when one is lost or comes.
    if isinstance(compute.workers, int):
        least = largest = compute.workers
    elif isinstance(compute.workers, Workers):
        least, largest = compute.workers.min, compute.workers.max
    if least > most:
        raise EnvironmentFault(
            f"compute.workers asks for {counted(least, 'worker')}, and there is room for {most} "
            f"({cpus} CPUs, {gpus:g} GPUs)",
            "start more nodes, or ask for fewer in compute.workers",
        )
    return WorkerGroup(least, largest, use_gpu, {"CPU": float(each)} | ({"GPU": 1.0} if use_gpu else {}))


def _worker(config: dict[str, Any]) -> None:
    """Train as one of Ray Train's workers."""
    from ray.train import get_context
    from ray.train.torch import get_device

    from cnnbatch.inference.worker import devices, malloc
    from cnnbatch.training.distributed import Team
    from cnnbatch.training.worker import work

    session.work_in(config["folder"])
    order: TrainingOrder = config["order"]
    context, compute = get_context(), order.job.compute
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    threads = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    malloc.keep_freed_memory()
    team = Team(context.get_world_rank(), context.get_world_size())
    found = devices.find_device(compute.device)
    device = (
        str(get_device()) if found == "cuda" else found
    )  # With its number: the workers of a node see all.
    work(order, team, device, threads, config["mailbox"].put.remote)
    ray.train.report({})  # Ray Train v2 waits for every worker's report before it calls a run finished.
