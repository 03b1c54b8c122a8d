"""Jobs over images, as tests write them: with a task, which an index job has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnbatch import job
from cnnbatch.job import ImageJob, MapJob, StudyJob, TrainJob


def load_job(name_or_path: str, changed: Sequence[str] | Mapping[str, Any] = ()) -> ImageJob:
    """Read a job over images as `cnnbatch.job.load_job` does."""
    return _over_images(job.load_job(name_or_path, changed))


def parse_job(
    text: str, name: str, changed: Sequence[str] | Mapping[str, Any] = (), no_code_in: Sequence[str] = ()
) -> ImageJob:
    """Read a job over images as `cnnbatch.job.parse_job` does."""
    return _over_images(job.parse_job(text, name, changed, no_code_in))


def _over_images(found: job.Job) -> ImageJob:
    assert isinstance(found, MapJob | TrainJob | StudyJob)
    return found
