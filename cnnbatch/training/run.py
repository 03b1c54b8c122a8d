"""The main path of a training: images and labels in, a tested model out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from cnnbatch import identity, lock, plugins
from cnnbatch.errors import UserError
from cnnbatch.job import Input, MapJob, TrainJob, to_yaml
from cnnbatch.output import Output
from cnnbatch.run import RunOptions, Summary, run
from cnnbatch.screen import Screen
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.training.collecting import collect
from cnnbatch.training.order import Order, Told
from cnnbatch.training.parts import Parts, parts_of
from cnnbatch.training.progress import Progress
from cnnbatch.training.strategy import decide, epochs_for
from cnnbatch.truth import classes_of


def train(job: TrainJob, options: RunOptions | None = None) -> Summary:
    """Train to the end, or go on where it was interrupted; then predict and judge the test images.

    Raises UserError, EnvironmentFault or OutputHeld; checkpoints stay, and the same call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    with Screen(options.quiet) as screen, lock.hold(output.storage, output.path("_job", "lock"), uuid4().hex):
        require_same_training(job, output)
        parts = parts_of(job, Storage(job.input.storage))
        if output.decided("training/finished") is None:
            collected = collect(job, parts, output)
            progress = Progress(screen, output, len(collected.train), job.train.batch)
            progress.begin(collected)
            decision = decide(job, parts, collected, output, screen.note)
            screen.note(f"strategy {decision.strategy}: {decision.why}")
            epochs = epochs_for(job, decision.strategy, collected.data)
            progress.expect(epochs)
            parts = replace(parts, how=collected.how)
            order = Order(job, output, parts, collected.data, decision, epochs, collected.digest)
            for told in _fit(order):
                progress.take(told)
    return _test(job, parts, output, options)


def require_same_training(job: TrainJob, output: Output) -> None:
    """Refuse a job other than the one that this output's training began with."""
    fields = json.loads(json.dumps(identity.of_training(job)))
    known = output.decide("training/identity", fields)
    differences = [
        f"  {name}: the output has {known.get(name)!r}, this job has {value!r}"
        for name, value in fields.items()
        if known.get(name) != value
    ]
    if differences:
        raise UserError(
            f"{redact(output.uri)} holds another training:\n" + "\n".join(differences) + "\n"
            "  what to do: choose another output, or give the job that made this one"
        )
    output.storage.put(output.path("_job", "training", "job.yaml"), to_yaml(job).encode())


def _fit(order: Order) -> Iterator[Told]:
    """Train, here or on Ray, and yield what the first worker tells."""
    if order.job.compute.pool == "inline" or order.decision.strategy == "as_is":
        yield from _here(order)
        return
    from cnnbatch.training.pool import fit

    yield from fit(order)


def _here(order: Order) -> Iterator[Told]:
    """Train in a thread of this process."""
    from cnnbatch import speed
    from cnnbatch.training.team import Team
    from cnnbatch.training.worker import work

    compute, told = order.job.compute, SimpleQueue[Told | None]()
    threads = compute.cpus_per_worker if compute.cpus_per_worker != "auto" else os.cpu_count() or 1
    device = speed.find_device(compute.device)
    with ThreadPoolExecutor(1, "train") as thread:
        working = thread.submit(work, order, Team(), device, threads, told.put)
        working.add_done_callback(lambda _: told.put(None))
        yield from iter(told.get, None)
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
    return run(test, options)


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
