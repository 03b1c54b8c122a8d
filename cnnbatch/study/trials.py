"""A study as its trials: pure, so the same study is the same trainings whenever it goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any

from cnnbatch.storage import join
from cnnbatch.study.spec import Range

if TYPE_CHECKING:
    from cnnbatch.job import StudyJob, TrainJob

FOLDER = "trials"
_SHORT = ("input", "output")  # Sections that may be given as their url.
_AT_ENDS = (0.0, 1.0)

Settings = Mapping[str, Any]
"""What a trial has, by the paths of the fields that vary."""


@dataclass(frozen=True)
class Trial:
    """One training of a study; ``run`` is its number among those that differ by seed and fold only."""

    name: str
    case: str
    settings: Settings
    run: int
    job: TrainJob


def in_force(job: StudyJob, lesson: bool) -> StudyJob:
    """Return the study as it is run; raises ValueError for a ``study.lesson`` that makes none of it."""
    from pydantic import ValidationError

    from cnnbatch.job import why_not

    if not lesson:
        return job
    data = merged(job.model_dump(mode="json"), job.study.lesson)
    if isinstance(data["study"], dict):
        data["study"]["lesson"] = {}
    try:
        return type(job).model_validate(data)
    except ValidationError as error:
        raise ValueError(f"study.lesson: {why_not(data, error)}") from None


def trials_of(job: StudyJob) -> list[Trial]:
    """Return the trainings of a study, case by case; raises ValueError for one that is no training."""
    study = job.study
    combinations = list(_combinations(job))
    names = _names([(case, settings) for case, settings in combinations], bool(study.search))
    return [
        _trial(job, f"{name}-{run}" if study.runs > 1 else name, case, settings, run)
        for (case, settings), name in zip(combinations, names, strict=True)
        for run in range(study.runs)
    ]


def check(job: StudyJob) -> None:
    """Raise ValueError for a study of which a trial is no training; of a search the ends are tried."""
    if not job.study.search:
        trials_of(job)
        return
    first = {path: _ends(drawn)[0] for path, drawn in job.study.search.items()}
    for case in job.study.cases or {"": {}}:
        for path, drawn in job.study.search.items():
            for end in _ends(drawn):
                _trial(job, "end", case, {**first, path: end}, 0)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, section by section."""
    found = dict(base)
    for name, value in changes.items():
        value = {"url": value} if name in _SHORT and isinstance(value, str | list | tuple) else value
        inner = found.get(name)
        if isinstance(value, Mapping):
            found[name] = merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            found[name] = value
    return found


def _combinations(job: StudyJob) -> Iterator[tuple[str, Settings]]:
    study = job.study
    for case in study.cases or ("",):
        if study.search:
            for number in range(study.trials):
                draw = Random(f"{job.train.seed} {case} {number}")
                yield case, {path: _drawn(drawn, draw) for path, drawn in study.search.items()}
        else:
            for values in product(*study.vary.values()):
                yield case, dict(zip(study.vary, values, strict=True))


def _drawn(drawn: Range | Sequence[Any], draw: Random) -> Any:
    return drawn.at(draw.random()) if isinstance(drawn, Range) else draw.choice(drawn)


def _ends(drawn: Range | Sequence[Any]) -> Sequence[Any]:
    return [drawn.at(place) for place in _AT_ENDS] if isinstance(drawn, Range) else drawn


def _names(combinations: Sequence[tuple[str, Settings]], numbered: bool) -> list[str]:
    """Return a folder's name for each combination, by what it has; by number where that tells too little."""
    words = [
        "-".join(filter(None, [_slug(case), *(() if numbered else map(_slug, settings.values()))]))
        for case, settings in combinations
    ]
    if not numbered and all(words) and len(set(words)) == len(words):
        return words
    width = len(str(len(words) - 1))
    return ["-".join(filter(None, [word, f"{number:0{width}}"])) for number, word in enumerate(words)]


def _slug(value: Any) -> str:
    """Return a value as a part of a folder's name; empty where it is no plain one."""
    if isinstance(value, Mapping | list | tuple):
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")


def _trial(job: StudyJob, name: str, case: str, settings: Settings, run: int) -> Trial:
    from pydantic import ValidationError

    from cnnbatch.job import TrainJob, why_not

    study = job.study
    data = job.model_dump(mode="json", exclude={"study"}) | {"kind": "train"}
    data = merged(data, study.cases.get(case, {}))
    for path, value in settings.items():
        data = merged(data, _nested(path, value))
    own: dict[str, Any] = {"train": {"seed": data["train"]["seed"] + run}}
    if study.folds:
        own["input"] = {"subset": {"folds": study.folds, "fold": run % study.folds}}
    own["output"] = {"url": join(job.output.url, FOLDER, name)}
    data = merged(data, own)
    try:
        return Trial(name, case, settings, run, TrainJob.model_validate(data))
    except ValidationError as error:
        where = f"the case {case!r}" if case else "a trial"
        with_ = ", ".join(f"{path}={value}" for path, value in settings.items())
        raise ValueError(
            f"{where}{' with ' * bool(with_)}{with_} is no training: {why_not(data, error)}"
        ) from None


def _nested(path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {name: _nested(rest, value) if rest else value}
