"""What can change a row, and nothing else: the fields whose digest is a part's fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cnnbatch.config.train import Train
from cnnbatch.images.limits import REVISION
from cnnbatch.job import ImageJob, MapJob, StudyJob, TrainJob, fingerprint_fields

if TYPE_CHECKING:
    from cnnbatch.types import Decoder, Model, Precision


def of(job: MapJob, model: Model, precision: Precision, decoder: Decoder) -> dict[str, Any]:
    """Return the identity of ``job`` with its loaded ``model``: JSON values by dotted names."""
    from cnnbatch.images import decode

    on_device = f"nvjpeg of torchvision {_minor('torchvision')}, " if decoder == "cuda" else ""
    decoders = on_device + decode.VERSION
    revision = {"decoder_revision": REVISION}
    return {**of_job(job), **model.identity, "decoder": decoders, **revision, "precision": precision}


def of_job(job: ImageJob) -> dict[str, Any]:
    """Return the part of the identity that is known before a model is loaded."""
    fields = fingerprint_fields(job)
    return {**dict(_flat(fields)), "cnnbatch": _minor("cnnbatch"), "torch": _minor("torch")}


def of_training(job: TrainJob | StudyJob) -> dict[str, Any]:
    """Return what another training would not have in common with this one, by dotted names.

    The same of a study, which may be one without trainings.
    """
    chosen = {"input.limit": job.input.limit, "input.sample": job.input.sample}
    trains = of_train(job.train) if job.train else {"train.strategy": None}
    own = {**trains, **chosen, "lesson": job.lesson}
    return {**of_job(job), **own, "decoder_revision": REVISION}


def of_train(train: Train) -> dict[str, Any]:
    """Return the fields by which trainings differ, by dotted names."""
    may_differ = {"checkpoint_s", "max_failures", "judge_first"}
    fields = {name: value for name, value in train.model_dump(mode="json").items() if name not in may_differ}
    return dict(_flat({"train": fields}))


def completed(known: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a training's record with the fields of ``train`` that were not there when it was written."""
    return None if known is None else {**of_train(Train()), **known}


def of_study(job: StudyJob) -> dict[str, Any]:
    """Return what another study would not have in common with this one, by dotted names."""
    varied = job.study.model_dump(mode="json", include={"cases", "vary", "search", "seeds", "folds"})
    return {**of_training(job), **dict(_flat({"study": varied}))}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Return the exact versions that made a part."""
    return {
        name: version(name) for name in ("cnnbatch", "torch", "torchvision", "pillow", "simplejpeg")
    } | _optional()


def _optional() -> dict[str, str]:
    """Return the versions of optional decoders that are installed; they are in no fingerprint."""
    try:
        return {"pillow_heif": version("pillow_heif")}
    except PackageNotFoundError:
        return {}


def _minor(package: str) -> str:
    return ".".join(version(package).split(".")[:2])


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
