"""Trains one trial of a study to its end, and keeps its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import StudyCase, StudyTrial
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage, normalize
from cnnbatch.training.run import train
from cnnbatch.training.study.record import TrialRecord, failure, keep_record, measured


def output_of(trial: StudyTrial | StudyCase) -> Output:
    """Return the output of a trial, which is that of a training, or of a job of kind map."""
    return Output(normalize(trial.job.output.url), Storage(trial.job.output.storage))


def finish(
    trial: StudyTrial, output: Output, forgive: bool, progress: Callable[[str], object] | None = None
) -> TrialRecord:
    """Train a trial to its end and keep its record; to ``forgive`` is to go on without one that can't be.

    ``progress`` is called with what its live line would be.
    """
    started = time.monotonic()
    try:
        train(trial.job, RunOptions(quiet=True, progress=progress))
    except UserError as error:
        if not forgive:
            raise UserError(f"the trial {trial.name}: {error}") from None
        return failure(trial, str(error).partition("\n")[0])
    seconds = round(time.monotonic() - started, 3)
    return keep_record(output, replace(measured(trial, output_of(trial)), wall_seconds=seconds))
