"""A study as its trials: pure, so the same study is the same trials whenever it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import ValidationError

from cnnbatch.config.study import Study
from cnnbatch.config.variations import FOLDER, Settings, combinations, ends, merged, names_of, nested
from cnnbatch.job.models import MapJob, StudyTemplate, TrainJob
from cnnbatch.job.schema import why_not
from cnnbatch.storage import join

S = TypeVar("S", bound=StudyTemplate)
J = TypeVar("J", MapJob, TrainJob)

_OF_TRAININGS = ("search", "seeds", "folds", "first", "side_by_side", "show")
"""Fields of a study that say how it trains."""


@dataclass(frozen=True)
class Trial(Generic[J]):
    """One trial of a study: a job; ``run`` is its number among those that differ by seed and fold only."""

    name: str
    case: str
    settings: Settings
    run: int
    job: J


StudyTrial: TypeAlias = Trial[TrainJob]
"""One training of a study."""
StudyCase: TypeAlias = Trial[MapJob]
"""What one case of a study without training predicts."""


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
    return [
        _training(job, f"{name}-{run}" if job.study.runs > 1 else name, case, settings, run)
        for name, case, settings in _named(job)
        for run in range(job.study.runs)
    ]


def cases_of(job: StudyTemplate) -> list[StudyCase]:
    """Return the cases of a study that has no ``train`` section; raises ValueError for one that is no job."""
    return [_prediction(job, *one) for one in _named(job)]


def _named(job: StudyTemplate) -> list[tuple[str, str, Settings]]:
    """Return each combination's name, its case, and what it has of what varies."""
    found = list(combinations(job.study, job.train.seed if job.train else 0))
    names = names_of(found, bool(job.study.search))
    return [(name, *one) for name, one in zip(names, found, strict=True)]


def check(job: StudyTemplate) -> None:
    """Raise ValueError for a study of which a trial is no job; of a search the ends are tried."""
    if job.train is None:
        _require_of_predictions(job.study)
        cases_of(job)
        return
    if not job.study.search:
        trials_of(job)
        return
    first = {path: ends(drawn)[0] for path, drawn in job.study.search.items()}
    for case in job.study.cases or {"": {}}:
        for path, drawn in job.study.search.items():
            for end in ends(drawn):
                _training(job, "end", case, {**first, path: end}, 0)


def _require_of_predictions(study: Study) -> None:
    """Raise ValueError where a study whose trials don't train says how they would."""
    for name in _OF_TRAININGS:
        if getattr(study, name) != Study.model_fields[name].default:
            raise ValueError(
                f"study.{name} is for trainings, and this study has no train section; expected cases or "
                "vary, or train: {} to train each trial"
            )


def _prediction(job: StudyTemplate, name: str, case: str, settings: Settings) -> StudyCase:
    data, where = _data(job, name, case, settings), _where(case, settings)
    if data.pop("train", None) is not None:
        raise ValueError(f"{where} says train, and the study has no such section; write train: {{}} in it")
    return Trial(name, case, settings, 0, _valid(MapJob, data, f"{where} is no job of kind map"))


def _training(job: StudyTemplate, name: str, case: str, settings: Settings, run: int) -> StudyTrial:
    data, where = _data(job, name, case, settings), _where(case, settings)
    own: dict[str, Any] = {
        "kind": "train",
        "lesson": job.lesson,
        "train": {"seed": data["train"]["seed"] + run},
    }
    if job.study.folds:
        own["input"] = {"subset": {"folds": job.study.folds, "fold": run % job.study.folds}}
    return Trial(name, case, settings, run, _valid(TrainJob, merged(data, own), f"{where} is no training"))


def _data(job: StudyTemplate, name: str, case: str, settings: Settings) -> dict[str, Any]:
    """Return the template with what a trial has otherwise."""
    data = job.model_dump(mode="json", exclude={"kind", "study", "lesson"})
    data = merged(data, job.study.cases.get(case, {}))
    for path, value in settings.items():
        data = merged(data, nested(path, value))
    return merged(data, {"output": {"url": join(job.output.url, FOLDER, name)}})


def _where(case: str, settings: Settings) -> str:
    """Return in words which trial it is."""
    where = f"the case {case!r}" if case else "a trial"
    with_ = ", ".join(f"{path}={value}" for path, value in settings.items())
    return f"{where}{' with ' * bool(with_)}{with_}"


def _valid(kind: type[J], data: Mapping[str, Any], wrong: str) -> J:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{wrong}: {why_not(data, error)}") from None
