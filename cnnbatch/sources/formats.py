"""From a job's ``input`` to its source: the format is named, or recognised where nothing else fits."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from cnnbatch.config.entries import Entries
from cnnbatch.config.section import Text
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.sources import datasets
from cnnbatch.sources.classes import OfClasses
from cnnbatch.sources.files.splits import inner_folder, splits_below
from cnnbatch.sources.labelled import FOLDER, Labelled, labelled_by_pattern
from cnnbatch.sources.located import LocatedSource
from cnnbatch.sources.recognition import is_earlier, recognise
from cnnbatch.sources.renamed import with_names
from cnnbatch.sources.subsets import SubsetSource
from cnnbatch.sources.without_truth import WithoutTruth
from cnnbatch.storage import Storage, is_local, normalize, redact
from cnnbatch.truth import NO_TRUTH, OBJECT_LABEL, SURE, answer_of

if TYPE_CHECKING:
    from cnnbatch.config.input import Input
    from cnnbatch.sources.mask_patches import MaskPatches
    from cnnbatch.sources.outputs import FoundBoxes
    from cnnbatch.storage import Allowed
    from cnnbatch.types import Source

_PART = re.compile(r"(?P<whole>.+)#(?P<part>objects|patches=(?P<side>[1-9]\d*))$")


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """How a format's source is made, and which fields of ``input`` mean something to it.

    ``opener`` is a function of the job's input and its storage, or the address of one, which is imported
    when it is needed. ``labelled``: labels may also be given by a pattern for the keys, ``input.label``.
    """

    opener: Callable[[Input, Storage], Source] | str
    fields: Collection[str] = ()
    labelled: bool = True

    def open(self, input: Input, storage: Storage) -> Source:
        """Return the source; imports what it needs."""
        source = self._make(input, storage)
        return labelled_by_pattern(source, input.label) if self.labelled and input.label else source

    @property
    def _make(self) -> Callable[[Input, Storage], Source]:
        if not isinstance(self.opener, str):
            return self.opener
        module, _, name = self.opener.partition(":")
        found: Callable[[Input, Storage], Source] = getattr(importlib.import_module(module), name)
        return found


_HERE = "cnnbatch.sources"
_OF_SOME_FORMATS = (
    "key",
    "label",
    "keep",
    "truth",
    "relabel",
    "ignore",
    "split",
    "inventory",
    "min_score",
    "suffixes",
)

FORMATS: Entries[SourceFormat] = Entries(
    "sources",
    {
        "files": SourceFormat(f"{_HERE}.formats:open_files", ("inventory", "suffixes")),
        "folders": SourceFormat(f"{_HERE}.formats:open_folders", ("inventory", "suffixes"), labelled=False),
        "list": SourceFormat(f"{_HERE}.lists.source:open_list", ("key", "label", "keep"), labelled=False),
        "parquet": SourceFormat(
            f"{_HERE}.parquet.source:open_parquet", ("key", "label", "keep"), labelled=False
        ),
        "tar": SourceFormat(f"{_HERE}.tar.source:open_tar", ("keep",)),
        "coco": SourceFormat(f"{_HERE}.coco.source:open_coco", ("truth", "suffixes"), labelled=False),
        "coco_maps": SourceFormat(
            f"{_HERE}.coco.source:open_coco_maps", ("truth", "relabel", "ignore", "suffixes"), labelled=False
        ),
        "voc": SourceFormat(
            f"{_HERE}.voc.opening:open_voc", ("split", "truth", "relabel", "ignore"), labelled=False
        ),
        "imagenet_det": SourceFormat(f"{_HERE}.voc.source:open_imagenet_det", ("split",), labelled=False),
        "masks": SourceFormat(f"{_HERE}.masks.source:open_masks", ("truth", "relabel", "ignore", "suffixes")),
        "object_masks": SourceFormat(
            f"{_HERE}.masks.object_masks:open_object_masks",
            ("truth", "label", "relabel", "ignore", "suffixes"),
            labelled=False,
        ),
        "cifar10": SourceFormat(f"{_HERE}.cifar10:open_cifar10", ("split",), labelled=False),
    },
    SourceFormat,
)
"""What ``input.format`` may be, beside ``auto``."""


def format_names() -> list[str]:
    """Return all that ``input.format`` may be."""
    return ["auto", *FORMATS.names()]


def known_format(name: str) -> str:
    """Return ``name``, which ``input.format`` may be; raises ValueError with the nearest name else."""
    if name == "auto" or name in FORMATS:
        return name
    if problem := FORMATS.problem(name):
        raise ValueError(problem)
    *names, last = format_names()
    got = json.dumps(name, ensure_ascii=False)
    raise ValueError(f"expected {', '.join(names)} or {last}, got {got}{meant(name, (*names, last))}")


KnownFormat = Annotated[Text, AfterValidator(known_format)]
"""The type of a field that names a format."""


def open_format(input: Input, storage: Storage) -> Source:
    """Return the source of ``input``; a mistake in it is a `UserError`."""
    if input.truth == NO_TRUTH:
        return WithoutTruth(open_format(input.model_copy(update={"truth": None}), storage))
    source = _open_answered(input, storage)
    if input.classes is not None:
        source = OfClasses(source, input.classes)
    return source if input.subset is None else SubsetSource(source, input.subset)


def _open_answered(input: Input, storage: Storage) -> Source:
    """Return a source whose truth may be what an earlier job answered."""
    if input.truth is None or not is_earlier(input.truth, storage):
        return _open_whole(input, storage)
    from cnnbatch.sources.earlier import with_earlier_truth

    own: dict[str, Any] = {"truth": None, "relabel": {}, "ignore": (), "min_score": SURE}
    images = WithoutTruth(_open_whole(input.model_copy(update=own), storage))
    return with_earlier_truth(images, input, input.truth, storage)


def _open_whole(input: Input, storage: Storage) -> Source:
    if located := datasets.resolve(input, storage):
        return LocatedSource(_open_whole(located.input, storage), located.name, located.folder)
    if isinstance(input.url, str) and (part := _PART.match(input.url)) and not _is_there(input.url):
        return _open_part(input, part["whole"], part["side"], storage)
    name = recognise(input, storage) if input.format == "auto" else input.format
    chosen = _format(name)
    _refuse_others(input, name, {*chosen.fields, "relabel", *(["label"] if chosen.labelled else [])})
    source = chosen.open(input, storage)
    if input.relabel and "relabel" not in chosen.fields:  # There it is for the values of masks.
        return with_names(source, input.relabel)
    return source


def _format(name: str) -> SourceFormat:
    try:
        return FORMATS[known_format(name)]
    except ValueError as error:
        raise UserError(f"input.format: {error}") from None


def _is_there(url: str) -> bool:
    """Say whether there is a local file or folder of this very name."""
    return is_local(url) and os.path.lexists(normalize(url))


def _refuse_others(input: Input, name: str, allowed: Collection[str]) -> None:
    """Refuse what the job says of an input and what means nothing to its format ``name``."""
    for field in _OF_SOME_FORMATS:
        default = type(input).model_fields[field].default
        if getattr(input, field) != default and field not in allowed:
            raise _means_nothing(field, name, input)


def _open_part(input: Input, whole: str, side: str | None, storage: Storage) -> Source:
    """Return the objects or patches of the source at ``whole`` as images."""
    from cnnbatch.sources import outputs, regions

    inner = input.model_copy(update={"url": whole, "keep": ()})
    if side is None and input.format == "auto" and outputs.is_output(whole, storage):
        _refuse_others(inner, "the output of a job", ("min_score",))
        _require_kept(input, (*regions.KEPT, OBJECT_LABEL))
        return regions.RegionImages(open_earlier(whole, storage, input.min_score, input.allow))
    _require_kept(input, regions.KEPT)
    if side is not None:
        _refuse_others(inner, "patches", ("truth", "relabel", "ignore", "suffixes"))
        return regions.RegionImages(_open_patches(inner, int(side), storage))
    source = _open_whole(inner, storage)
    if source.truth_schema is None or answer_of(source.truth_schema) != regions.ANSWER:
        raise UserError(
            f"input.url: {redact(whole)} has no boxes that could be images\n"
            "  what to do: give the output of detect, or a source whose ground truth has boxes (COCO, VOC …)"
        )
    return regions.RegionImages(regions.TruthBoxes(source))


def _require_kept(input: Input, known: Sequence[str]) -> None:
    """Refuse columns that a part of a picture does not have."""
    if strange := [name for name in input.keep if name not in known]:
        raise UserError(
            f"input.keep: of a part of a picture {', '.join(known)} can be kept; got {', '.join(strange)}"
        )


def _open_patches(input: Input, side: int, storage: Storage) -> MaskPatches:
    from cnnbatch.sources.mask_patches import MaskPatches
    from cnnbatch.sources.masks.classes import listed_classes
    from cnnbatch.sources.masks.meaning import meaning_of

    if input.truth is None:
        raise UserError(
            "input.truth: patches need a folder of masks (PNG, a class a pixel), each called as its picture\n"
            "  what to do: give it, as in input=images#patches=32 input.truth=masks"
        )
    masks = normalize(input.truth)
    pictures = open_files(input.model_copy(update={"truth": None}), storage)
    return MaskPatches(pictures, storage, masks, side, meaning_of(input, listed_classes(masks, storage)))


def open_files(input: Input, storage: Storage) -> Source:
    """Return the images of folders, globs and single files, listed by the storage or an inventory."""
    from cnnbatch.sources.files.source import Files
    from cnnbatch.sources.inventory import COLUMNS, open_inventory

    urls = (input.url,) if isinstance(input.url, str) else tuple(input.url)
    chosen = frozenset(input.suffixes) or None
    if input.inventory is None:
        return Files(storage, urls, suffixes=chosen)
    inventory = open_inventory(input.inventory, storage, urls, input.allow)
    return Files(storage, urls, COLUMNS, inventory=inventory, suffixes=chosen)


def open_folders(input: Input, storage: Storage) -> Source:
    """Return the images of one folder whose own folders are the classes, or parts that have the classes."""
    if not isinstance(input.url, str):
        raise UserError(
            f"input.format: folders named by class lie below one address, got {len(input.url)}\n"
            "  what to do: give the folder that holds them"
        )
    pattern = FOLDER
    if splits := splits_below(normalize(input.url), storage):
        pattern = splits.pattern
    elif input.subset is not None and input.subset.by == "folder":
        pattern = inner_folder()
    return Labelled(open_files(input, storage), pattern, "input.format=folders")


def _means_nothing(field: str, name: str, input: Input) -> UserError:
    url = input.url if isinstance(input.url, str) else input.url[0]
    reading = [known for known, entry in FORMATS.items() if field in entry.fields] or ["OUT#objects"]
    return UserError(
        f"input.{field}: {redact(url)} is read as {name}, which has no use for it\n"
        f"  what to do: leave it out, or name the format in input.format; input.{field} is for "
        f"{', '.join(reading)}"
    )


def open_earlier(url: str, storage: Storage, min_score: float, allow: Sequence[Allowed] = ()) -> FoundBoxes:
    """Return the objects of an output; `UserError` where its task writes none.

    The output names its images as a list does: one in a bucket may be anybody's, so it reaches no further.
    """
    from cnnbatch.output.folder import Output
    from cnnbatch.output.reader import Reader
    from cnnbatch.sources.outputs import FoundBoxes
    from cnnbatch.sources.regions import ANSWER
    from cnnbatch.storage import OutOfReach

    result = Reader(url, storage)
    input = _input(result.settings)
    if ANSWER not in result.schema.names or ANSWER in input.keep:
        raise UserError(
            f"{redact(url)} has no objects: its columns are {', '.join(result.schema.names)}\n"
            "  what to do: give the output of a task that finds some, such as detect"
        )
    input = input.model_copy(update={"allow": tuple(allow)})
    images = Storage(input.storage).for_list(normalize(url), allow)
    try:
        return FoundBoxes(Output(normalize(url), storage), open_format(input, images), min_score)
    except OutOfReach as error:
        raise UserError(f"{redact(url)} cannot be read further: {error}") from None


def _input(settings: dict[str, Any]) -> Input:
    from cnnbatch.config.input import Input

    return Input.model_validate(settings["input"])
