"""The output folder of a question: what it was made of, so that no two questions are mixed in one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter

from cnnbatch.errors import UserError
from cnnbatch.index.calibrated import Calibrated
from cnnbatch.index.embeddings import EmbeddedOutput
from cnnbatch.job import QuestionJob, to_yaml
from cnnbatch.output.folder import Output
from cnnbatch.storage import redact

EMBEDDED, GALLERY = "embedded", "gallery"
"""Where below the output the embeddings lie that were made for it; each is an output of its own."""


def require_room(output: Output) -> None:
    """Refuse a folder that holds what a job of another kind has made or begun; raises UserError."""
    if output.decided("identity") is None and (output.finished() or [*output.names("_job/plan")]):
        raise UserError(
            f"{redact(output.uri)} holds what another job has made\n  what to do: choose another output"
        )


def begin(
    output: Output,
    identity: Mapping[str, Any],
    finished: Collection[int],
    job: QuestionJob,
    embedded: EmbeddedOutput,
) -> None:
    """Record what the output is made of.

    Raises UserError, with what differs, where the parts that are ``finished`` were made of something else.
    """
    if finished:
        output.require_identity(identity)
    else:
        output.undecide("identity", EMBEDDED)
    output.decide("identity", identity)
    options = embedded.output.storage.options.model_dump(mode="json")
    output.decide(EMBEDDED, {"url": embedded.output.uri, "storage": options})
    output.storage.put(output.path("_job", "job.yaml"), to_yaml(job).encode())


def digest_of(value: Any) -> str:
    """Return the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def calibration_digest(calibrated: Calibrated | None) -> str | None:
    """Return what tells a calibration from any other; None for none."""
    if calibrated is None:
        return None
    return digest_of(TypeAdapter(Calibrated).dump_python(calibrated, mode="json"))
