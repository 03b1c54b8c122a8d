"""The kinds of job; of a study each trial is checked with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from cnnbatch.job.models import (
    GroupJob,
    IdentifyJob,
    IndexJob,
    MapJob,
    QuestionJob,
    SearchJob,
    StudyTemplate,
    TrainJob,
    VerifyJob,
)
from cnnbatch.job.trials import check, in_force


class StudyJob(StudyTemplate):
    """Run one template many times, told apart by what varies, and compare: train, or predict and judge."""

    @model_validator(mode="after")
    def _trials_are_jobs(self) -> Self:
        for lesson in (False, True) if self.study.lesson else (False,):
            check(in_force(self, lesson))
        return self


ImageJob = MapJob | TrainJob | StudyJob
"""A job over images: it has a task."""

Job = ImageJob | IndexJob | GroupJob | QuestionJob

KINDS: Mapping[str, type[Job]] = {
    "map": MapJob,
    "train": TrainJob,
    "study": StudyJob,
    "index": IndexJob,
    "group": GroupJob,
    "search": SearchJob,
    "identify": IdentifyJob,
    "verify": VerifyJob,
}
