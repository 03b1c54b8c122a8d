"""What format an input is of where the job does not say: by its addresses, and by what a folder holds."""

from __future__ import annotations

import posixpath
import re
from itertools import islice
from typing import TYPE_CHECKING

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.images.formats import SUFFIXES
from cnnbatch.sources.files.patterns import is_pattern
from cnnbatch.sources.masks.source import has_mask_folders
from cnnbatch.sources.masks.trees import masks_of_tree
from cnnbatch.storage import (
    Forbidden,
    NotFound,
    Storage,
    Unreadable,
    join,
    normalize,
    redact,
    without_query,
)

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

LISTS = (".txt", ".csv", ".tsv", ".parquet")
"""Suffixes that ``format: auto`` takes for a list of addresses; of Parquet, where it holds no images."""

TARS = (".tar", ".tar.gz", ".tgz")
"""Suffixes of tar archives."""

_CIFAR10 = {"data_batch_1.bin", "test_batch.bin", "data_batch_1", "test_batch"}
_PEEKED = 50  # entries of a folder that are looked at to recognise it


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
    if input.truth and not is_earlier(input.truth, storage):
        return "voc" if masks_of_tree(urls[0], input.truth) else "masks"
    if posixpath.splitext(path)[1] or pattern or path.startswith(("http:", "https:")):
        return "files"
    return _recognise_folder(normalize(urls[0]), storage, input.suffixes)


def is_earlier(truth: str, storage: Storage) -> bool:
    """Say whether ``input.truth`` is the output of a job, and no file."""
    from cnnbatch.sources.outputs import is_output

    return not posixpath.splitext(without_query(truth))[1] and is_output(truth, storage)


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
    if names and "/" in names[0] + names[-1] and has_mask_folders(root, storage):
        return "masks"
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
