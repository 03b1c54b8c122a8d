"""The main path of a training: images and labels in, a tested model out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from threading import Event
from typing import Any
from uuid import uuid4

from cnnbatch.config import plugins
from cnnbatch.config.input import Input
from cnnbatch.inference import fingerprint
from cnnbatch.inference.run import RunOptions, Summary, places, run
from cnnbatch.job import MapJob, TrainJob, to_yaml
from cnnbatch.output import lock, ownership
from cnnbatch.output.folder import Output, require_same
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.training import local
from cnnbatch.training.data.dataset import collect
from cnnbatch.training.data.splits import Parts, parts_of
from cnnbatch.training.local import threads_of, trains_here
from cnnbatch.training.messages import TrainingMessage, TrainingOrder
from cnnbatch.training.progress import Progress
from cnnbatch.training.strategy import decide, epochs_for
from cnnbatch.truth import classes_of

ANOTHER = "choose another output, or give the job that made this one"
"""What to do where an output holds another training, or another study."""


def train(job: TrainJob, options: RunOptions | None = None) -> Summary:
    """Train to the end, or go on where it was interrupted; then predict and judge the test images.

    Raises UserError, EnvironmentFault or OutputHeld; checkpoints stay, and the same call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    with (
        Screen(options.quiet, progress=options.progress) as screen,
        lock.hold(output.storage, output.path("_job", "lock"), uuid4().hex),
    ):
        begin(job, output, screen.note)
        parts = parts_of(job, Storage(job.input.storage))
        if output.decided("training/finished") is None:
            screen.doing("looking at the images and their classes")
            collected = collect(job, parts, output)
            progress = Progress(screen, output, len(collected.train), job.train.batch)
            progress.begin(collected)
            screen.doing("choosing what to tune")
            decision = decide(job, parts, collected, output, screen.note)
            screen.note(f"strategy {decision.strategy}: {decision.why}")
            epochs = epochs_for(job, decision.strategy, collected.data)
            progress.expect(epochs)
            screen.doing("starting the training")
            parts = replace(parts, how=collected.how)
            order = TrainingOrder(job, output, parts, collected.data, decision, epochs, collected.digest)
            for message in _fit(order, screen.note):
                progress.take(message)
    return _test(job, parts, output, options)


def begin(job: TrainJob, output: Output, note: Callable[[str], None]) -> None:
    """Record that ``output`` is begun for ``job``; what another one left there without a result is discarded.

    Raises UserError where another one has a checkpoint or more.
    """
    ownership.make_room(output, "train", note)
    fields, known = fingerprint.of_training(job), _known(job, output)
    if not ownership.holds_results(output):
        if known != fields and ownership.discard_all(output):
            note(ownership.discarded(output, known, fields))
    else:
        require_same_training(job, output)
    output.decide("training/identity", fields)
    output.storage.put(output.path("_job", "training", "job.yaml"), to_yaml(job).encode())


def require_same_training(job: TrainJob, output: Output) -> None:
    """Refuse a job other than the one that this output's training began with."""
    known, fields = _known(job, output), fingerprint.of_training(job)
    if output.decided("training/finished") is not None:
        fields.pop("decoder_revision")  # What is trained stays trained, whatever decoded its images.
    require_same(f"{redact(output.uri)} holds another training:", known, fields, ANOTHER)


def _known(job: TrainJob, output: Output) -> dict[str, Any] | None:
    """Return what this output's training began with.

    Earlier records don't say whether it is a lesson, nor the fields of ``train`` that were not there yet.
    """
    known = fingerprint.completed(output.decided("training/identity"))
    return None if known is None else {"lesson": job.lesson, **known}


def _fit(order: TrainingOrder, note: Callable[[str], object]) -> Iterator[TrainingMessage]:
    """Train, here or on Ray, and yield what the first worker sends; ``note`` gets which Ray."""
    if order.job.compute.pool == "inline" or order.decision.strategy == "as_is":
        yield from _here(order)
        return
    if trains_here(order.job.compute):
        if order.decision.strategy != "scratch":
            order.job.task.require_weights_to_train()  # Said before a process is started.
        yield from local.fit(order)
        return
    from cnnbatch.training.driver import fit

    yield from fit(order, note)


def _here(order: TrainingOrder) -> Iterator[TrainingMessage]:
    """Train in a thread of this process."""
    from cnnbatch.inference.worker import devices
    from cnnbatch.training.distributed import Team
    from cnnbatch.training.worker import work

    compute, messages, stopped = order.job.compute, SimpleQueue[TrainingMessage | None](), Event()

    def send(message: TrainingMessage) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt  # Also here: the thread that asked for the training was stopped.
        messages.put(message)

    device = devices.find_device(compute.device)
    with ThreadPoolExecutor(1, "train") as thread:
        working = thread.submit(work, order, Team(), device, threads_of(compute), send)
        working.add_done_callback(lambda _: messages.put(None))
        try:
            yield from iter(messages.get, None)
        finally:
            stopped.set()
        working.result()


def _test(job: TrainJob, parts: Parts, output: Output, options: RunOptions) -> Summary:
    """Predict the test images with the trained model, into the same output; without any, only report."""
    chosen = parts.test or parts.validation
    model = job.task.model_copy(update=_trained(job, output, chosen))
    test = MapJob(
        task=model,
        input=chosen,
        compute=job.compute,
        output=job.output,
        evaluate=job.evaluate,
        max_failed=job.max_failed,
    )
    tested = run(test, replace(options, tests_training=True))
    return replace(tested, paths={**tested.paths, **places(output, {"model": "model.json"})})


def _trained(job: TrainJob, output: Output, chosen: Input) -> dict[str, Any]:
    """Return the fields by which the task runs the trained model on ``chosen`` images."""
    model = str(getattr(job.task, "model", ""))
    is_code = plugins.is_code(model)  # Which no folder's word is enough to run.
    fields = {
        "model": model if is_code else output.uri,
        "weights": output.uri if is_code else "DEFAULT",
        "sha256": None,
        "classes": None,
        "key_map": None,
        "storage": job.output.storage,
        "aliases": _unlearned(job, output, chosen),
    }
    return {name: value for name, value in fields.items() if name in type(job.task).model_fields}


def _unlearned(job: TrainJob, output: Output, chosen: Input) -> dict[str, str | None]:
    """Return the classes that a truth lists and that no image trained, as those that the model leaves out."""
    learned = (output.decided("training/data") or {}).get("classes", ())
    schema = open_source(chosen, Storage(job.input.storage)).truth_schema
    listed = classes_of(schema) if schema is not None else ()
    return {one.name: None for one in listed if one.name not in learned}
