"""A study as its trainings: pure, so the same study is the same trainings whenever it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from cnnbatch.config.variations import FOLDER, Settings, combinations, ends, merged, names_of, nested
from cnnbatch.job.models import StudyTemplate, TrainJob
from cnnbatch.job.schema import why_not
from cnnbatch.storage import join

S = TypeVar("S", bound=StudyTemplate)


@dataclass(frozen=True)
class StudyTrial:
    """One training of a study; ``run`` is its number among those that differ by seed and fold only."""

    name: str
    case: str
    settings: Settings
    run: int
    job: TrainJob


def in_force(job: S, lesson: bool) -> S:
    """Return the study as it is run; raises ValueError for a ``study.lesson`` that makes none of it."""
    if not lesson:
        return job
    data = merged(job.model_dump(mode="json"), job.study.lesson)
    if isinstance(data["study"], dict):
        data["study"]["lesson"] = {}
    try:
        return type(job).model_validate(data)
    except ValidationError as error:
        raise ValueError(f"study.lesson: {why_not(data, error)}") from None


def trials_of(job: StudyTemplate) -> list[StudyTrial]:
    """Return the trainings of a study, case by case; raises ValueError for one that is no training."""
    study = job.study
    found = list(combinations(study, job.train.seed))
    names = names_of(found, bool(study.search))
    return [
        _trial(job, f"{name}-{run}" if study.runs > 1 else name, case, settings, run)
        for (case, settings), name in zip(found, names, strict=True)
        for run in range(study.runs)
    ]


def check(job: StudyTemplate) -> None:
    """Raise ValueError for a study of which a trial is no training; of a search the ends are tried."""
    if not job.study.search:
        trials_of(job)
        return
    first = {path: ends(drawn)[0] for path, drawn in job.study.search.items()}
    for case in job.study.cases or {"": {}}:
        for path, drawn in job.study.search.items():
            for end in ends(drawn):
                _trial(job, "end", case, {**first, path: end}, 0)


def _trial(job: StudyTemplate, name: str, case: str, settings: Settings, run: int) -> StudyTrial:
    study = job.study
    data = job.model_dump(mode="json", exclude={"study"}) | {"kind": "train"}
    data = merged(data, study.cases.get(case, {}))
    for path, value in settings.items():
        data = merged(data, nested(path, value))
    own: dict[str, Any] = {"train": {"seed": data["train"]["seed"] + run}}
    if study.folds:
        own["input"] = {"subset": {"folds": study.folds, "fold": run % study.folds}}
    own["output"] = {"url": join(job.output.url, FOLDER, name)}
    data = merged(data, own)
    try:
        return StudyTrial(name, case, settings, run, TrainJob.model_validate(data))
    except ValidationError as error:
        where = f"the case {case!r}" if case else "a trial"
        with_ = ", ".join(f"{path}={value}" for path, value in settings.items())
        raise ValueError(
            f"{where}{' with ' * bool(with_)}{with_} is no training: {why_not(data, error)}"
        ) from None
