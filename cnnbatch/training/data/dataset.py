"""Lists the training and validation images once, checks their labels, and keeps both in the output."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.humanize import counted
from cnnbatch.job import TrainJob
from cnnbatch.output import integrity, plan
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.sources.soundness import unsound
from cnnbatch.storage import NotFound, Storage, redact
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.training.data.ground_truth import TrainingGroups, TrainingTruth, truth_kind
from cnnbatch.training.data.sample_table import ListedPart, Refs, listed
from cnnbatch.training.data.splits import Parts
from cnnbatch.truth import classes_of
from cnnbatch.types import Source

LESSON_IMAGES = 1000
"""The most images of a part of a lesson, where the job says no limit of its own."""
_SHOWN = 8


@dataclass(frozen=True)
class Collected:
    """What there is to learn from; ``digest`` is that of the keys and classes.

    ``listed`` is how many images could train; a lesson takes fewer. ``left_out`` are the classes of which no
    image trains, with the numbers of those that validate and test.
    """

    data: TrainingData
    train: Refs
    validation: Refs
    digest: str
    how: str
    listed: int
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def left_out_words(self) -> str:
        """Say which classes can't be learned, and why; empty where there are none."""
        if not self.left_out:
            return ""
        named = [f"{name!r} ({_where(counts)})" for name, counts in self.left_out.items()]
        more = f" and {len(named) - _SHOWN:,} more" if len(named) > _SHOWN else ""
        classes = "one class is" if len(named) == 1 else f"{len(named):,} classes are"
        return (
            f"{classes} left out of the model, since no image trains: {', '.join(named[:_SHOWN])}{more}; "
            "give more images of each, or another input.subset.seed where they are cut by hash"
        )


def refs_uri(output: Output, part: str) -> str:
    """Return where the images of a part are listed."""
    return output.path("_job", "training", f"{part}.parquet")


def read_refs(output: Output, part: str) -> Refs:
    """Return the images of a part, as they were collected."""
    uri = refs_uri(output, part)
    try:
        data = output.storage.read(uri)
    except NotFound:
        raise UserError(f"{redact(uri)} is missing\n  what to do: {integrity.PUT_BACK}") from None
    with integrity.reading(uri):
        return Refs.from_bytes(data)


def collect(job: TrainJob, parts: Parts, output: Output) -> Collected:
    """List the parts, unless that was done before; raises UserError for labels that can't be learned."""
    kept = output.decided("training/data")
    if kept is not None:
        refs = [read_refs(output, part) for part in ("train", "validation")]
        of_maps = (kept.get("numbers", {}), kept.get("seen", {}))
        data = TrainingData(tuple(kept["classes"]), kept["counts"], len(refs[0]), *of_maps)
        known = (kept["digest"], kept["how"], kept["listed"], kept.get("left_out", {}))
        return Collected(data, refs[0], refs[1], *known)
    found = _collect(job, parts)
    for part, refs_of_part in (("train", found.train), ("validation", found.validation)):
        output.storage.put(refs_uri(output, part), refs_of_part.to_bytes())
    output.decide("training/data", _record(found))
    return found


def _record(found: Collected) -> dict[str, Any]:
    return {
        "classes": found.data.classes,
        "counts": dict(found.data.counts),
        **({"numbers": found.data.numbers, "seen": found.data.seen} if found.data.numbers else {}),
        "train": len(found.train),
        "validation": len(found.validation),
        "digest": found.digest,
        "how": found.how,
        "listed": found.listed,
        "left_out": found.left_out,
    }


def _collect(job: TrainJob, parts: Parts) -> Collected:
    storage = Storage(job.input.storage)
    source = open_source(parts.train, storage)
    if source.truth_schema is None:
        raise UserError(
            "input: a training needs ground truth, and these images have none\n"
            "  what to do: put them into folders named by class, or give input.label or input.truth"
        )
    train = _list(parts.train, source)
    validation = _list(parts.validation, open_source(parts.validation, storage))
    test = _test(parts, storage)
    _require_usable(train, validation, test)
    _require_some(train, parts.train)
    _require_some(validation, parts.validation)
    how, count = parts.how, len(train.refs)
    if unlabelled := train.unlabelled + validation.unlabelled:
        how += f"; {unlabelled:,} without ground truth are left out"
    if job.lesson and job.input.limit is None and len(train.refs) > LESSON_IMAGES:
        how += f"; of {len(train.refs):,} that train {LESSON_IMAGES:,}, since it is a lesson"
        train, validation = (_shortened(job, one) for one in (train, validation))
    _, kind = truth_kind(source.truth_schema)
    if job.task.learns_new_classes:
        kind = TrainingGroups()
        _require_apart(train, validation, test)
    counts, validated, tested = train.counts(), validation.counts(), test.counts()
    classes = _classes(job, source, kind, counts, validated)
    left_out = _left_out(job, classes, validated, tested)
    if left_out and kind.one_class:
        validation = replace(validation, refs=validation.refs.without(left_out))
        _require_some(validation, parts.validation)
    if kind.has_classes:
        _require_learnable(kind, classes, counts, validation.counts(), tested)
    if kind.one_class or job.task.learns_new_classes:
        _require_several(classes, left_out)
    if lone := _without_a_pair(job, counts):
        how += f"; {lone:,} of {len(classes):,} classes have one training image and make no pair"
    data = _training_data(classes, train, kind.numbers(source.truth_schema))
    digest = _digest(train.refs, validation.refs)
    return Collected(data, train.refs, validation.refs, digest, how, count, left_out)


def _shortened(job: TrainJob, part: ListedPart) -> ListedPart:
    """Return the images of a lesson; where pairs are learned from, most have one of their class with them."""
    if job.task.learns_new_classes:
        return replace(part, refs=part.refs.some_of_classes(LESSON_IMAGES, job.train.embedding.pictures))
    return replace(part, refs=part.refs.some(LESSON_IMAGES))


def _training_data(classes: tuple[str, ...], train: ListedPart, numbers: Mapping[str, int]) -> TrainingData:
    """Return what a recipe knows; ``numbers`` stand for the classes in maps."""
    counts = train.pixels if numbers else train.counts()
    return TrainingData(
        classes,
        counts={name: counts[name] for name in classes},
        images=len(train.refs),
        numbers={name: numbers[name] for name in classes if numbers},
        seen={name: train.seen[name] for name in classes if numbers},
    )


def _test(parts: Parts, storage: Storage) -> ListedPart:
    """List what tests, if anything is to; raises UserError where nothing does, before the training."""
    source = open_source(parts.test or parts.train, storage)
    return listed(source, ()) if parts.test is None else _list(parts.test, source)


def _require_usable(*parts: ListedPart) -> None:
    """Refuse images whose ground truth can't be used, where that is known beforehand."""
    if problems := [one for part in parts for one in part.problems]:
        count = sum(len(part.refs) + part.unlabelled for part in parts)
        raise unsound(problems, f"{count:,} images that train, validate and test")


def _left_out(
    job: TrainJob, classes: Sequence[str], validated: Counter[str], tested: Counter[str]
) -> dict[str, dict[str, int]]:
    """Return the classes that occur, or that the job chose, and that the model will not have."""
    if job.task.chosen_classes() is not None or job.task.learns_new_classes:
        return {}  # Others than those are a mistake, or the test's own affair.
    names = {*validated, *tested, *(job.input.classes or ())} - set(classes)
    return {name: {"validation": validated[name], "test": tested[name]} for name in sorted(names)}


def _without_a_pair(job: TrainJob, counts: Counter[str]) -> int:
    """Return how many classes have one image, where pairs are learned from."""
    return sum(count == 1 for count in counts.values()) if job.task.learns_new_classes else 0


def _require_apart(train: ListedPart, validation: ListedPart, test: ListedPart) -> None:
    """Insist on other classes in each part, and on pairs to judge by."""
    parts = {"train": train.counts(), "validate": validation.counts(), "test": test.counts()}
    for one, other in combinations(parts, 2):
        if both := sorted({*parts[one]} & {*parts[other]}):
            raise UserError(
                f"input: what is learned is judged by classes that it was not learned from, but images of "
                f"{_some(both)} {one} and {other}\n"
                "  what to do: give folders or a column by which all images of a class are in one part, or "
                "leave them out, and the classes are cut by hash"
            )
    counts = parts["validate"]
    if len(counts) < 2 or max(counts.values()) < 2:
        classes = "one class" if len(counts) == 1 else f"{len(counts):,} classes"
        raise UserError(
            f"input: expected images of two classes at least to validate by, and two of one of them; "
            f"the validation has {counted(counts.total(), 'image')} of {classes}\n"
            "  what to do: give more classes, or a larger train.validation"
        )


def _where(counts: Mapping[str, int]) -> str:
    said = {"validate": counts["validation"], "test": counts["test"]}
    return ", ".join(f"{count:,} {word}" for word, count in said.items() if count) or "no image at all"


def _list(chosen: Input, source: Source) -> ListedPart:
    return listed(source, plan.select(source.refs(), chosen.sample, chosen.limit))


def _require_some(found: ListedPart, chosen: Input) -> None:
    if not len(found.refs):
        part = chosen.subset.part if chosen.subset else chosen.split
        raise UserError(
            f"input: no image of the part {part} has ground truth\n"
            "  what to do: give the folder whose folders are the classes, or input.label or input.truth"
        )


def _classes(
    job: TrainJob, source: Source, kind: TrainingTruth, counts: Counter[str], validated: Counter[str]
) -> tuple[str, ...]:
    """Return the job's class names, else the source's that are learned, else those of the labels, sorted."""
    if (given := job.task.chosen_classes()) is not None:
        return tuple(given)
    own = [one.name for one in classes_of(source.truth_schema)] if source.truth_schema else []
    known = tuple(name for name in own if name and kind.learns(counts[name], validated[name]))
    return known if set(counts) <= set(known) else tuple(sorted(counts))


def _require_several(classes: Sequence[str], left_out: Mapping[str, Mapping[str, int]]) -> None:
    """Insist on classes that can be told apart."""
    if len(classes) < 2:
        others = f"; of {_some(list(left_out))} no image trains" if left_out else ""
        raise UserError(
            f"input: a classifier tells classes apart, expected two at least, got one: {_some(list(classes))}"
            f"{others}\n"
            "  what to do: give the folder whose folders are the classes; look at input.classes, input.limit "
            "and input.subset, which may leave only one"
        )


def _require_learnable(
    kind: TrainingTruth,
    classes: Sequence[str],
    train: Counter[str],
    validation: Counter[str],
    tested: Counter[str],
) -> None:
    unknown = sorted((set(train) | set(validation)) - set(classes))
    if not classes:
        raise UserError(
            "input: no training image has anything to learn\n"
            "  what to do: give images with objects, or pixels, of some class; crowds and what is to be "
            "ignored do not teach"
        )
    if unknown and not kind.spares:
        raise UserError(
            f"task.classes: images have labels that are none of {len(classes)} classes: {_some(unknown)}\n"
            f"  the classes: {_some(list(classes))}\n"
            "  what to do: add them to task.classes, or leave these images out of the input"
        )
    lone = [name for name in classes if train[name] + validation[name] + tested[name] == 1]
    if lone and not kind.spares:
        raise UserError(
            f"input: a class needs two images at least, one to learn from and one to judge by; "
            f"{_some(lone)} {'has' if len(lone) == 1 else 'have'} one\n"
            f"  what to do: give more of them, or leave the class out: {_without(lone[0])}"
        )
    empty = [name for name in classes if not train[name]]
    if empty:
        raise UserError(
            f"input: no image trains {_some(empty)}, of {len(classes)} classes\n"
            f"  what to do: give images of each class, or leave the class out: {_without(empty[0])}; where "
            "few images were cut by hash, another input.subset.seed cuts them otherwise"
        )


def _without(name: str) -> str:
    """Return how a job leaves out a class."""
    return f"'input.relabel={{{name}: null}}'"


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _digest(train: Refs, validation: Refs) -> str:
    state = hashlib.sha256()
    for refs in (train, validation):
        for column in ("key", "etag", "class"):
            state.update(repr(refs.table[column].to_pylist()).encode())
    return state.hexdigest()
