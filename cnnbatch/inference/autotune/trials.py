"""What is written of one way through a network that was tried, or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cnnbatch.inference.autotune.agreement import limits
from cnnbatch.inference.autotune.candidates import TuningCandidate, TuningTrial, Verdict
from cnnbatch.inference.worker.settings import Settings


def by(way: TuningCandidate, settings: Settings) -> Settings:
    """Return the settings of a worker that takes this way."""
    return replace(settings, precision=way.precision, backend=way.backend, tf32=way.tf32)


def trial_of(
    settings: Settings,
    verdict: Verdict = "slower",
    reason: str = "",
    rate: float | None = None,
    agreement: Mapping[str, float] | None = None,
) -> TuningTrial:
    """Return what is written of these settings, with the limits of what the guard measured."""
    return TuningTrial(
        precision=settings.precision,
        backend=settings.backend,
        batch=settings.batch,
        tf32=settings.tf32,
        verdict=verdict,
        reason=reason,
        rate=rate,
        agreement=agreement or {},
        decoder=settings.decoder,
        limits={name: limits()[name].to_json() for name in agreement or {}},
    )


def is_of(trial: TuningTrial, settings: Settings) -> bool:
    """Say whether a trial is one of these settings, whatever came of it."""
    return trial_of(settings) == replace(
        trial, verdict="slower", reason="", rate=None, loading_s=None, agreement={}, limits={}
    )
