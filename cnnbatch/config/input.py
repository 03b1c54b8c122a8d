"""The ``input:`` section of a job: which images, in what form, and what is known of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cnnbatch.config.section import Count, Folds, Place, Section, Seed, Share, Text, Texts
from cnnbatch.storage import Allowed, StorageOptions
from cnnbatch.truth import SURE


def _suffixes(value: Any) -> Any:
    """Return suffixes in lower case, each with its dot."""
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return [f".{one.strip().lower().removeprefix('.')}" for one in value]
    return value


class Subset(Section):
    """A part of the images that is set apart for training, validating or testing; the same at every listing.

    ``by`` says how the input itself tells them: ``folder`` (a folder of the key is called train, val or test,
    in whatever case, also test_set and the like), a kept column that says so, or ``hash``: not at all. Of its
    training images the shares ``test`` and ``validation`` are then set apart by the hash of their keys.
    ``per_class`` keeps of what does not test the first few of each class by hash, and leaves the others to
    ``rest``; ``share`` trains on a part only. ``folds`` instead of ``validation`` cuts what is not set apart
    to test: each image of it validates in one ``fold``, parts of one picture in the same, and trains in the
    others.

    ``group`` is a regular expression that is matched with the keys from their start: images for which it
    finds the same are in the same part or fold, as those of one film or one patient have to be.

    ``cut`` says by what the shares and folds are cut, if not by hash. ``block``: of each group of images, in
    the order of their keys, the last ones test and those before them validate, and a fold is one of so many
    blocks: for frames of a film, where the neighbours of what trains are known too well. ``turn``: by turns,
    as every fifth image for a fifth. There a group is, unless said, a folder; and where images are added,
    others may change their part.

    ``whole_classes`` keeps the images of one class, as of one person, in the same part or fold: classes are
    cut in the order of the hashes of their names. Where classes are added, others may change their part.
    """

    part: Literal["train", "validation", "test"] = "train"
    by: Text = "hash"
    validation: Share = 0.15
    test: Share = 0.15
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    per_class: Count | None = None
    rest: Literal["test", "none"] = "test"
    folds: Folds | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    cut: Literal["hash", "block", "turn"] = "hash"
    group: Text | None = None
    whole_classes: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _fold_of_folds(self) -> Self:
        if self.fold >= (self.folds or 1):
            raise ValueError(
                f"expected fold to be below folds, got fold {self.fold} of {self.folds or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_cut_by_hash(self) -> Self:
        others = {"cut": self.cut != "hash", "group": self.group, "per_class": self.per_class}
        if self.whole_classes and (given := [name for name, value in others.items() if value]):
            raise ValueError(
                f"expected no {', '.join(given)} beside whole_classes, which cuts classes by hash"
            )
        return self


Number = Annotated[int, Field(ge=0, le=65_535)]
"""A value of a mask."""

Relabelling = dict[Text, Number | Text | None] | Literal["reduce_zero_label"]
Ignored = Annotated[tuple[Number | Text, ...], Field(strict=False)]


class Input(Place):
    """Which images to read, and what to keep of each."""

    url: Text | Annotated[Texts, Field(min_length=1)] = Field(
        description="A folder, a glob, a list (text, CSV or Parquet), a data set, or addresses."
    )
    format: Text = Field("auto", description="auto decides by the name, and by what a folder holds.")
    key: Text | None = Field(
        None, description="Column of a list that names each image; else its address does."
    )
    label: Text | None = Field(
        None,
        description="Column that holds the true class; of files a regular expression for their keys.",
    )
    truth: Text | None = Field(
        None,
        description="Where the ground truth is, if not in the input itself; none: leave out what lies there.",
    )
    relabel: Relabelling = Field(
        {},
        description="Classes that are called otherwise or left out, as in {lorry: car, sky: null}, and "
        "values of masks that are others, as in {7: 0, 1-150: 0-149}.",
    )
    ignore: Ignored = Field(
        (), description="Of masks: values and classes whose pixels do not count; 255 where no class has it."
    )
    split: Text | Annotated[Texts, Field(min_length=1)] | None = Field(
        None, description="Which part of a data set that comes in several; of a VOC tree also several."
    )
    classes: Texts | None = Field(
        None,
        description="Only images of these true classes; of an earlier job's objects, as it called them.",
    )
    inventory: Text | None = Field(
        None, description="manifest.json of an S3 Inventory of the bucket, instead of listing it."
    )
    suffixes: Annotated[Texts, BeforeValidator(_suffixes)] = Field(
        (), description="What the names of images end with, instead of all known formats' suffixes."
    )
    subset: Subset | None = Field(None, description="Only a part that was set apart.")
    keep: Texts = Field((), description="Columns of a list to repeat in every row.")
    min_score: Share = Field(
        SURE, description="Of the objects of an earlier output (OUT#objects), the least score that is taken."
    )
    allow: Annotated[tuple[Allowed, ...], Field(strict=False)] = Field(
        (), description="What a list from the web or a bucket may name beside public web addresses."
    )
    limit: Count | None = Field(None, description="Take only so many images.")
    sample: float = Field(
        1.0, gt=0, le=1, allow_inf_nan=False, description="Take this part of the images, by key."
    )
    shard_size: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = Field(
        "auto", description="Images in one part; auto: the task's own, and fewer in the first and last parts."
    )
    storage: StorageOptions = Field(
        StorageOptions(), description="Options of the storage, none of them secret."
    )
