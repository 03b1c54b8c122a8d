"""From a job's ``input`` to its source: the format is named, or recognised where nothing else fits."""

from __future__ import annotations

import importlib
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.images.formats import SUFFIXES
from cnnbatch.sources import datasets
from cnnbatch.sources.files.patterns import is_pattern
from cnnbatch.sources.files.splits import inner_folder, splits_below
from cnnbatch.sources.labelled import FOLDER, Labelled, labelled_by_pattern
from cnnbatch.sources.located import Placed
from cnnbatch.storage import (
    Forbidden,
    NotFound,
    Storage,
    Unreadable,
    is_local,
    join,
    normalize,
    parent,
    redact,
    without_query,
)
from cnnbatch.storage.text import decoded
from cnnbatch.truth import NO_TRUTH, OBJECT_LABEL

if TYPE_CHECKING:
    from cnnbatch.config.input import Input
    from cnnbatch.sources.masks import MaskPatches
    from cnnbatch.sources.outputs import FoundBoxes
    from cnnbatch.storage import Allowed
    from cnnbatch.types import Source

LISTS = (".txt", ".csv", ".tsv", ".parquet")
"""Suffixes that ``format: auto`` takes for a list of addresses; of Parquet, where it holds no images."""

TARS = (".tar", ".tar.gz", ".tgz")
"""Suffixes of tar archives."""

_CIFAR10 = {"data_batch_1.bin", "test_batch.bin", "data_batch_1", "test_batch"}
_PEEKED = 50  # entries of a folder that are looked at to recognise it
_PART = re.compile(r"(?P<whole>.+)#(?P<part>objects|patches=(?P<side>[1-9]\d*))$")


@dataclass(frozen=True, slots=True)
class Format:
    """Where a format's source is made, and which fields of ``input`` mean something to it."""

    opener: str
    fields: frozenset[str] = frozenset()
    labelled: bool = True

    def open(self, input: Input, storage: Storage) -> Source:
        """Return the source; imports what it needs."""
        module, _, name = self.opener.partition(":")
        make: Callable[[Any, Storage], Source] = getattr(
            importlib.import_module(f"cnnbatch.sources.{module}"), name
        )
        source = make(input, storage)
        return labelled_by_pattern(source, input.label) if self.labelled and input.label else source


FORMATS = {
    "files": Format("formats:open_files", frozenset({"inventory", "suffixes"})),
    "folders": Format("formats:open_folders", frozenset({"inventory", "suffixes"}), labelled=False),
    "list": Format("lists.source:open_list", frozenset({"key", "label", "keep"}), labelled=False),
    "coco": Format("coco.source:open_coco", frozenset({"truth", "suffixes"}), labelled=False),
    "voc": Format("voc.source:open_voc", frozenset({"split"}), labelled=False),
    "parquet": Format("parquet.source:open_parquet", frozenset({"key", "label", "keep"}), labelled=False),
    "tar": Format("tar.source:open_tar", frozenset({"keep"})),
    "cifar10": Format("cifar10:open_cifar10", frozenset({"split"}), labelled=False),
    "imagenet_det": Format("voc.source:open_imagenet_det", frozenset({"split"}), labelled=False),
}


def open_format(input: Input, storage: Storage) -> Source:
    """Return the source of ``input``; a mistake in it is a `UserError`."""
    if input.truth == NO_TRUTH:
        from cnnbatch.sources.without_truth import WithoutTruth

        return WithoutTruth(open_format(input.model_copy(update={"truth": None}), storage))
    source = _open_whole(input, storage)
    if input.classes is not None:
        from cnnbatch.sources.classes import OfClasses

        source = OfClasses(source, input.classes)
    if input.subset is None:
        return source
    from cnnbatch.sources.subsets import Apart

    return Apart(source, input.subset)


def _open_whole(input: Input, storage: Storage) -> Source:
    if located := datasets.resolve(input, storage):
        return Placed(_open_whole(located.input, storage), located.name, located.folder)
    if isinstance(input.url, str) and (part := _PART.match(input.url)) and not _is_there(input.url):
        return _open_part(input, part["whole"], part["side"], storage)
    name = recognise(input, storage) if input.format == "auto" else input.format
    chosen = FORMATS[name]
    _refuse_others(input, name, chosen.fields | ({"label"} if chosen.labelled else set()))
    return chosen.open(input, storage)


def _is_there(url: str) -> bool:
    """Say whether there is a local file or folder of this very name."""
    return is_local(url) and os.path.lexists(normalize(url))


def _refuse_others(input: Input, name: str, allowed: frozenset[str]) -> None:
    """Refuse what the job says of an input and what means nothing to its format ``name``."""
    for field in ("key", "label", "keep", "truth", "split", "inventory", "min_score", "suffixes"):
        default = type(input).model_fields[field].default
        if getattr(input, field) != default and field not in allowed:
            raise _means_nothing(field, name, input)


def _open_part(input: Input, whole: str, side: str | None, storage: Storage) -> Source:
    """Return the objects or patches of the source at ``whole`` as images."""
    from cnnbatch.sources import outputs, regions

    inner = input.model_copy(update={"url": whole, "keep": ()})
    if side is None and input.format == "auto" and outputs.is_output(whole, storage):
        _refuse_others(inner, "the output of a job", frozenset({"min_score"}))
        _require_kept(input, (*regions.KEPT, OBJECT_LABEL))
        return regions.RegionImages(open_earlier(whole, storage, input.min_score, input.allow))
    _require_kept(input, regions.KEPT)
    if side is not None:
        _refuse_others(inner, "patches", frozenset({"truth", "suffixes"}))
        return regions.RegionImages(_open_patches(inner, int(side), storage))
    source = _open_whole(inner, storage)
    if source.truth_schema is None or "objects" not in source.truth_schema.names:
        raise UserError(
            f"input.url: {redact(whole)} has no boxes that could be images\n"
            "  what to do: give the output of detect, or a source with box truth (COCO, VOC, tar, Parquet)"
        )
    return regions.RegionImages(regions.TruthBoxes(source))


def _require_kept(input: Input, known: Sequence[str]) -> None:
    """Refuse columns that a part of a picture does not have."""
    if strange := [name for name in input.keep if name not in known]:
        raise UserError(
            f"input.keep: of a part of a picture {', '.join(known)} can be kept; got {', '.join(strange)}"
        )


def _open_patches(input: Input, side: int, storage: Storage) -> MaskPatches:
    from cnnbatch.sources.masks import MaskPatches

    if input.truth is None:
        raise UserError(
            "input.truth: patches need a folder of masks (PNG, a class a pixel), each called as its picture\n"
            "  what to do: give it, as in input=images#patches=32 input.truth=masks"
        )
    masks = normalize(input.truth)
    pictures = open_files(input.model_copy(update={"truth": None}), storage)
    return MaskPatches(pictures, storage, masks, side, _class_names(masks, storage))


def _class_names(masks: str, storage: Storage) -> tuple[str, ...]:
    """Return the lines of ``classes.txt`` in a folder or beside it; none where there is no such file."""
    for file in (join(masks, "classes.txt"), join(parent(masks), "classes.txt")):
        try:
            lines = decoded(storage.read(file), "replace").splitlines()
        except (NotFound, Forbidden, Unreadable):
            continue
        return tuple(line.strip() for line in lines if line.strip())
    return ()


def recognise(input: Input, storage: Storage) -> str:
    """Return the format of an input by its addresses, and where it is a folder by what lies first in it."""
    urls = [input.url] if isinstance(input.url, str) else list(input.url)
    if len(urls) > 1 or input.inventory:
        return "files"
    path, pattern = without_query(redact(urls[0])).lower(), is_pattern(normalize(urls[0]), storage)
    if path.endswith(".json") or (input.truth or "").lower().endswith(".json"):
        return "coco"
    if path.endswith(".parquet"):
        return "parquet" if pattern or _holds_images(urls[0], storage) else "list"
    if path.endswith(LISTS):
        return "list"
    if path.endswith(TARS):
        return "tar"
    if posixpath.splitext(path)[1] or pattern or path.startswith(("http:", "https:")):
        return "files"
    return _recognise_folder(normalize(urls[0]), storage, input.suffixes)


def _holds_images(url: str, storage: Storage) -> bool:
    from cnnbatch.sources.parquet.source import is_parquet

    return is_parquet(url, storage)


def _recognise_folder(root: str, storage: Storage, images: tuple[str, ...]) -> str:
    names = _first_names(root, storage)
    if not _CIFAR10.isdisjoint(names):
        return "cifar10"
    if names and names[0].startswith("Annotations/DET/"):
        return "imagenet_det"
    if names and re.match(r"Annotations/[^/]+\.xml$", names[0]):
        return "voc" if _first_names(join(root, "JPEGImages"), storage) else "files"
    suffixes = {posixpath.splitext(name)[1].lower() for name in names}
    if suffixes.isdisjoint(images or SUFFIXES):  # images beside containers are what is meant
        tars = [name for name in names if name.lower().endswith(TARS)]
        tables = [name for name in names if name.lower().endswith(".parquet")]
        if tars:
            return _of_tars(root, tars[0], tables, storage)
        if tables:
            _refuse_output(root, storage)
            return "parquet"
    return "files"


def _refuse_output(root: str, storage: Storage) -> None:
    from cnnbatch.sources.outputs import is_output

    if is_output(root, storage):
        raise UserError(
            f"input.url: {redact(root)} is the output of a job, with rows and no images\n"
            f"  what to do: give its own input for the same images, or {redact(root)}#objects for what it "
            "found in them"
        )


def _of_tars(root: str, tar: str, tables: list[str], storage: Storage) -> str:
    """Return ``tar``, unless Parquet files beside the archives hold images, too: that is a `UserError`."""
    if tables and _holds_images(root, storage):
        raise UserError(
            f"input.url: {redact(root)} holds tar archives, as {tar}, and Parquet files of images, "
            f"as {tables[0]}\n"
            "  what to do: name one of them in input.format=tar or parquet"
        )
    return "tar"


def _first_names(root: str, storage: Storage) -> list[str]:
    """Return the first few paths below a folder; none where there is none, which its source will say.

    What is hidden, such as the notes that some systems leave in each folder, tells nothing.
    """
    try:
        paths = [entry.uri[len(root) :].lstrip("/") for entry in islice(storage.list(root), _PEEKED)]
        return [path for path in paths if not path.startswith(".") and "/." not in path]
    except (NotFound, Forbidden, Unreadable, UserError, EnvironmentFault):
        return []


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
    from cnnbatch.storage import OutOfReach

    result = Reader(url, storage)
    input = _input(result.settings)
    if "objects" not in result.schema.names or "objects" in input.keep:
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
