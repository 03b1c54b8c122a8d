"""The kinds of job as closed, frozen models; a study's own checks are in `job.kinds`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from cnnbatch.config.compute import Compute
from cnnbatch.config.index import IndexInput, IndexSection
from cnnbatch.config.input import Input
from cnnbatch.config.output import Evaluate, OutputSection
from cnnbatch.config.questions import GroupSection, IdentifySection, IndexPlace, SearchSection, VerifySection
from cnnbatch.config.section import Section
from cnnbatch.config.study import Study
from cnnbatch.config.train import Train
from cnnbatch.job.task import mistake, task_of
from cnnbatch.sources.formats import known_format
from cnnbatch.tasks import Task

SHORT = {"input": "url", "output": "url", "index": "url"}
"""Sections that may be given as one value, and the field that it stands for."""


class _OverImages(Section):
    """What every job over images says."""

    kind: str
    task: Annotated[SerializeAsAny[Task], BeforeValidator(task_of)]
    input: Input
    compute: Compute = Compute()
    output: OutputSection
    evaluate: Evaluate = Evaluate()
    max_failed: float = Field(0.01, ge=0, le=1, description="Share of failed images that is still a success.")

    @field_validator("input")
    @classmethod
    def _format_is_known(cls, input: Input) -> Input:
        try:
            known_format(input.format)
        except ValueError as error:
            raise mistake("format", str(error), input.format) from None
        return input

    @model_validator(mode="after")
    def _slices_are_kept(self) -> Self:
        if self.evaluate.truth is not None:  # It may have columns of its own.
            return self
        if lacking := [name for name in self.evaluate.slices if name not in self.input.keep]:
            names = ", ".join(map(repr, lacking))
            raise ValueError(
                f"expected evaluate.slices among input.keep, but {names} is not kept; faces that a list in "
                "evaluate.truth judges may be sliced by more"
            )
        return self


class MapJob(_OverImages):
    """Apply one model to every image of a collection: images in, one row each out."""

    kind: Literal["map"] = "map"


class TrainJob(_OverImages):
    """Tune a network on labelled images, and test it on others."""

    kind: Literal["train"] = "train"
    train: Train = Train()
    lesson: bool = Field(
        False, description="A form that ends within ten minutes, and shows the method inside."
    )

    @model_validator(mode="after")
    def _task_trains(self) -> Self:
        if type(self.task).recipe is Task.recipe:
            raise ValueError(f"the task {self.task.name} does not train; expected one that does, as classify")
        return self

    @model_validator(mode="after")
    def _tests_by_its_own_truth(self) -> Self:
        if self.evaluate.truth is not None:
            raise ValueError(
                "expected no evaluate.truth in a training, which is tested by its own images; give it to a "
                "job of kind map that uses the trained model"
            )
        return self


class IndexJob(Section):
    """Make the embeddings of other jobs' outputs searchable, or add to an index what they have since."""

    kind: Literal["index"] = "index"
    input: IndexInput
    index: IndexSection = IndexSection()
    compute: Compute = Compute()
    output: OutputSection


class GroupJob(Section):
    """Group the faces of an index into persons, which are a part of the index: there is no other output."""

    kind: Literal["group"] = "group"
    input: IndexPlace
    group: GroupSection = GroupSection()


class _Question(Section):
    """What every job that asks an index about a collection says."""

    input: Input = Field(description="Images, or an output that has their embeddings already.")
    index: IndexPlace
    compute: Compute = Compute()
    output: OutputSection
    max_failed: float = Field(0.01, ge=0, le=1, description="Share of failed rows that is still a success.")


class SearchJob(_Question):
    """Search an index for every embedding of a collection: images in, one row each out."""

    kind: Literal["search"] = "search"
    search: SearchSection = SearchSection()


class IdentifyJob(_Question):
    """Name every face of a collection, or say that it is of nobody who is known."""

    kind: Literal["identify"] = "identify"
    identify: IdentifySection = IdentifySection()


class VerifyJob(_Question):
    """Compare pairs of pictures of a collection: pairs in, one row each out."""

    kind: Literal["verify"] = "verify"
    verify: VerifySection


QuestionJob = SearchJob | IdentifyJob | VerifyJob
"""A job that asks an index about a collection."""


class StudyTemplate(_OverImages):
    """What a study says; `StudyJob` also has checked that each of its trials is a job."""

    kind: Literal["study"] = "study"
    train: Train | None = Field(
        None,
        exclude_if=lambda train: train is None,
        description="How each trial trains; without this section each predicts, and is judged.",
    )
    study: Study
    lesson: bool = Field(False, description="The form in study.lesson, of lessons.")
