"""Takes for a worker what an earlier job has found, where it still holds; the worker's side.

What it holds under is compared before a network is loaded, the network itself once it is. Where that is
another one, or the remembered way can't be loaded any more, a worker runs as if nothing were known.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.autotune.agreement import limits
from cnnbatch.inference.autotune.candidates import TuningCandidate, TuningTrial, batches
from cnnbatch.inference.autotune.measure import Measured, open_ways
from cnnbatch.inference.autotune.trials import by, is_of, trial_of
from cnnbatch.inference.messages import LoadOrder, RememberedSettings, TuningSample
from cnnbatch.inference.worker.settings import Settings
from cnnbatch.inference.worker.worker import Worker
from cnnbatch.job import MapJob
from cnnbatch.models.runtime.backends import Unavailable
from cnnbatch.types import Model

_RUN_BY = ("cnnbatch", "torch", "torchvision", "openvino", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker, and by what was ``remembered`` it runs; ``note`` says why not, where it should have."""

    worker: Worker
    remembered: RememberedSettings | None = None
    note: str = ""


def recalled(order: LoadOrder, plain: Settings) -> RememberedSettings | None:
    """Return what is remembered for a worker that else would run in ``plain`` settings first."""
    if not order.remembered:
        return None
    first = "precision" not in (order.kept or {})
    precision_open = first and order.job.compute.precision == "auto"
    here = _conditions(order.job, plain, precision_open, first)
    ways = open_ways(order.job, plain, precision_open)
    for one in order.remembered:
        is_open = by(_way(one), plain) == plain or _way(one) in ways
        if one.conditions == here and is_open and _fits(one, order.job, plain, first):
            return one
    return None


def load(known: RememberedSettings | None, plain: Settings, make: Callable[[Settings], Worker]) -> Loaded:
    """Return a worker that runs as is remembered, or as if nothing were."""
    note = ""
    if known is not None:
        try:
            worker = make(_settings(known, plain))
        except (Unavailable, UserError, EnvironmentFault, RuntimeError, OSError) as error:
            why = " ".join(str(error).split())
            note = f"{known.backend} {known.precision}, {known.why()}, can't be used any more: {why}"
        else:
            if known.network == _network(worker.model):
                return Loaded(worker, known)
            worker.close()
    return Loaded(make(plain), None, note)


def trials_of(known: RememberedSettings, plain: Settings) -> list[TuningTrial]:
    """Return what is written of a worker that runs as is remembered: what was measured then."""
    compared = {name: value for name, value in known.agreement.items() if name in limits()}
    settings, reference = _settings(known, plain), _eager_fp32(plain)
    chosen = trial_of(settings, "chosen", known.why(), known.rate, compared)
    if known.rate is None or known.reference_rate is None or reference == settings:
        return [chosen]
    return [trial_of(reference, rate=known.reference_rate), chosen]


def to_remember(
    job: MapJob, plain: Settings, sample: TuningSample, measured: Measured
) -> RememberedSettings | None:
    """Return what is to be remembered of a measuring; None where nothing could be timed."""
    if measured.found is None:
        return None
    settings = measured.worker.settings
    chosen = next(one for one in measured.trials if one.verdict == "chosen")
    eager = (one.rate for one in measured.trials if one.rate and is_of(one, _eager_fp32(plain)))
    # In another number of inputs a way is not compared again.
    compared = (one.agreement for one in measured.trials if one.agreement and _is_same_way(one, settings))
    return RememberedSettings(
        conditions=_conditions(job, plain, sample.precision_open, sample.decoder_open),
        network=_network(measured.worker.model),
        precision=settings.precision,
        backend=settings.backend,
        batch=settings.batch,
        tf32=settings.tf32,
        decoder=settings.decoder,
        found=measured.found,
        on=datetime.now(UTC).date().isoformat(),
        enough=measured.enough,
        rate=chosen.rate or None,
        reference_rate=next(eager, None),
        agreement=next(compared, {}),
    )


def _conditions(job: MapJob, plain: Settings, precision_open: bool, decoder_open: bool) -> dict[str, str]:
    """Return all that what is found depends on, but for the task and the network."""
    return {
        "device": plain.device,
        "machine": _machine(),
        "threads": str(plain.threads),
        "precision": "auto" if precision_open else plain.precision,
        "backend": job.compute.backend,
        "batch": str(job.compute.batch),
        "decoder": "auto" if decoder_open else plain.decoder,
        **_versions(),
    }


def _eager_fp32(settings: Settings) -> Settings:
    return replace(settings, precision="fp32", backend="eager", tf32=False, decoder="cpu")


def _is_same_way(trial: TuningTrial, settings: Settings) -> bool:
    return is_of(replace(trial, batch=settings.batch), settings)


def _way(one: RememberedSettings) -> TuningCandidate:
    return TuningCandidate(one.precision, one.backend, one.tf32)


def _fits(one: RememberedSettings, job: MapJob, plain: Settings, decoder_open: bool) -> bool:
    """Say whether batch and decoder are such as measuring may find here."""
    on_device = decoder_open and plain.type == "cuda" and job.task.prepares_on_device
    others = batches(plain.type, plain.batch) if job.compute.batch == "auto" else ()
    return one.batch in (plain.batch, *others) and (one.decoder == plain.decoder or on_device)


def _settings(one: RememberedSettings, plain: Settings) -> Settings:
    return replace(by(_way(one), plain), decoder=one.decoder).with_batch(one.batch)


def _network(model: Model) -> str:
    """Return a digest of what can change a network's outputs: weights, preprocessing, library, classes."""
    return hashlib.sha256(json.dumps(dict(model.identity), sort_keys=True).encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    return {name: _version(name) for name in _RUN_BY}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def _machine() -> str:
    """Return the processor's name and how many cores there are: machines may share a cache."""
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name[:100]}, {os.cpu_count() or 1} cores"
