"""Trains trials on Ray Tune, the only importer of it: side by side, one a slot.

A slot is a GPU where there are some, else a CPU core; a trial trains within one, so there is no group of
workers to form. What a search draws follows from its seed, and what is done stands in the study's output, so
Tune keeps nothing, and is given only the trials that are left.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray import tune

from cnnbatch.cluster import session
from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault
from cnnbatch.job import StudyTrial
from cnnbatch.output.folder import Output
from cnnbatch.training.study.record import TrialRecord

POLL_S = 0.5
ANSWER_S = 60.0


def side_by_side(
    trials: Sequence[StudyTrial], output: Output, note: Callable[[str], object]
) -> Iterator[TrialRecord]:
    """Train trials and yield each record when it is over; one that can't be trained has its error.

    ``note`` is called with which Ray does it.
    """
    compute = trials[0].job.compute
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Its new output says some of it at verbose=0, too.
    session.connect(compute, note)
    with session.faults():
        yield from _side_by_side(trials, output)


def _side_by_side(trials: Sequence[StudyTrial], output: Output) -> Iterator[TrialRecord]:
    slot, inside = slot_for(trials[0].job.compute)
    trials_inside = {trial.name: _inside(trial, inside) for trial in trials}
    records: Any = ray.remote(_Records).options(num_cpus=0).remote()
    with tempfile.TemporaryDirectory(prefix="cnnbatch-ray-tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    _train, trials=trials_inside, output=output, records=records, folder=os.getcwd()
                ),
                slot,
            ),
            param_space={"trial": tune.grid_search(list(trials_inside))},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        fitting = _Fitting(tuner)
        while fitting.is_alive():
            session.require_alive()
            yield from ray.get(records.take.remote(), timeout=ANSWER_S)
            time.sleep(POLL_S)
        yield from ray.get(records.take.remote(), timeout=ANSWER_S)
        fitting.result()


def slot_for(compute: Compute) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what a trial gets of the cluster, and how it computes there."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    use_gpu = there.get("GPU", 0.0) > 0 and compute.device in ("auto", "cuda")
    slot = {"cpu": float(cpus)} | ({"gpu": 1.0} if use_gpu else {})
    return slot, {"pool": "inline", "cpus_per_worker": cpus}


def _inside(trial: StudyTrial, changes: dict[str, Any]) -> StudyTrial:
    """Return a trial that is trained within one process."""
    compute = trial.job.compute.model_copy(update=changes)
    job = trial.job.model_copy(update={"compute": compute})
    return StudyTrial(trial.name, trial.case, trial.settings, trial.run, job)


def _train(
    config: dict[str, Any], trials: dict[str, StudyTrial], output: Output, records: Any, folder: str
) -> dict[str, Any]:
    """Train one trial as Tune's function, and hand its record over; ``folder`` is the driver's."""
    from cnnbatch.training.study.trial import finish

    session.work_in(folder)
    record = finish(trials[config["trial"]], output, forgive=True)
    ray.get(records.put.remote(record))
    return {"done": record.name}


class _Records:
    """An actor that holds records until the driver takes them."""

    def __init__(self) -> None:
        self._records: list[TrialRecord] = []

    def put(self, record: TrialRecord) -> None:
        self._records.append(record)

    def take(self) -> list[TrialRecord]:
        taken, self._records = self._records, []
        return taken


class _Fitting(threading.Thread):
    """A tuner at work in a thread, since its `fit` waits for the end."""

    def __init__(self, tuner: tune.Tuner) -> None:
        super().__init__(name="ray-tune", daemon=True)
        self._tuner = tuner
        self._results: tune.ResultGrid | None = None
        self._fault: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._results = self._tuner.fit()
        except Exception as error:  # To be raised by whoever waits for it.
            self._fault = error

    def result(self) -> None:
        """Raise what ended it, or the first of its trials that a fault of the machine ended."""
        faults = list(self._results.errors) if self._results is not None else []
        if first := self._fault or next(iter(faults), None):
            raise EnvironmentFault(
                f"the study was ended: {str(first).strip().splitlines()[-1]}",
                "look at the machines; the same command goes on with the trials that are left",
            )
