"""A job: closed, frozen models that are the same value in YAML, in Python and in ``_job/job.yaml``."""

from cnnbatch.job.bundled import job_names, job_purpose, jobs_folder
from cnnbatch.job.kinds import ImageJob, Job, StudyJob
from cnnbatch.job.models import (
    GroupJob,
    IdentifyJob,
    IndexJob,
    MapJob,
    QuestionJob,
    SearchJob,
    TrainJob,
    VerifyJob,
)
from cnnbatch.job.reading import load_job, load_map_job, parse_job
from cnnbatch.job.schema import job_schema
from cnnbatch.job.trials import StudyCase, StudyTrial, cases_of, in_force, trials_of
from cnnbatch.job.writing import fingerprint_fields, to_yaml

__all__ = [
    "GroupJob",
    "IdentifyJob",
    "ImageJob",
    "IndexJob",
    "Job",
    "MapJob",
    "QuestionJob",
    "SearchJob",
    "StudyJob",
    "TrainJob",
    "VerifyJob",
    "StudyCase",
    "StudyTrial",
    "cases_of",
    "fingerprint_fields",
    "in_force",
    "job_names",
    "job_purpose",
    "job_schema",
    "jobs_folder",
    "load_job",
    "load_map_job",
    "parse_job",
    "to_yaml",
    "trials_of",
]
