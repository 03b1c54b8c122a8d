"""Makes lists (file, label) of sets whose truth no format reads; nothing of an image is changed.

Each function takes the folder that a set was unpacked to and returns the images of each part.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from cnnbatch.sources.datasets.layouts import ALL, Lists
from cnnbatch.sources.datasets.matlab import read_numbers
from cnnbatch.storage.text import decoded

Rows = Iterable[tuple[str, str]]


def write(folder: Path, lists: Lists) -> None:
    """Write ``PART.csv`` for each part, and one of all images.

    Raises:
        ValueError: a list is empty, or its first image is not there.
    """
    parts = {name: list(rows) for name, rows in lists.items()}
    for name, rows in {ALL: list(chain.from_iterable(parts.values())), **parts}.items():
        if not rows or not (folder / rows[0][0]).is_file():
            raise ValueError(f"the images of {name!r} are not where they were expected")
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("file", "label"), *rows])


def oxford_iiit_pet(folder: Path) -> Lists:
    """Return the images by breed, as in ``Abyssinian_100 1 1 1``: the breed is in the name."""

    def rows(split: str) -> Rows:
        for line in _lines(folder / f"annotations/{split}.txt"):
            name = line.split()[0]
            yield f"images/{name}.jpg", name.rpartition("_")[0]

    return {split: rows(split) for split in ("trainval", "test")}


def caltech101(folder: Path) -> Lists:
    """Return the images by folder, but for the background, which is no kind of thing."""
    found = _by_folder(folder, folder / "101_ObjectCategories")
    return {ALL: [row for row in found if row[1] != "BACKGROUND_Google"]}


def flowers102(folder: Path) -> Lists:
    """Return the images by kind: MATLAB's files have a number for each image, and the images of each part."""
    from torchvision.datasets import Flowers102

    labels = read_numbers(folder / "imagelabels.mat")["labels"].astype(int)
    parts = read_numbers(folder / "setid.mat")

    def rows(name: str) -> Rows:
        for image in map(int, parts[name]):
            yield f"jpg/image_{image:05}.jpg", str(Flowers102.classes[labels[image - 1] - 1])

    return {split: rows(name) for split, name in Flowers102._splits_map.items()}


def food101(folder: Path) -> Lists:
    """Return the images by dish, as in ``apple_pie/1005649``."""

    def rows(split: str) -> Rows:
        for line in _lines(folder / f"food-101/meta/{split}.txt"):
            yield f"food-101/images/{line}.jpg", line.partition("/")[0]

    return {split: rows(split) for split in ("train", "test")}


def dtd(folder: Path) -> Lists:
    """Return the images by texture, as in ``banded/banded_0002.jpg``, in the first division."""

    def rows(split: str) -> Rows:
        for line in _lines(folder / f"dtd/labels/{split}1.txt"):
            yield f"dtd/images/{line}", line.partition("/")[0]

    return {split: rows(split) for split in ("train", "val", "test")}


def imagenette(folder: Path) -> Lists:
    """Return the images by class, with the names of ImageNet's classes for WordNet's numbers."""
    from torchvision.datasets import Imagenette

    names = {number: str(words[0]) for number, words in Imagenette._WNID_TO_CLASS.items()}
    parts = {split: _by_folder(folder, folder / "imagenette2-320" / split) for split in ("train", "val")}
    return {split: [(file, names[number]) for file, number in rows] for split, rows in parts.items()}


def _by_folder(root: Path, folder: Path) -> list[tuple[str, str]]:
    """Return the images below ``folder`` as (path below ``root``, name of their own folder)."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in (".jpg", ".jpeg"))
    return [(file.relative_to(root).as_posix(), file.parent.name) for file in files]


def _lines(path: Path) -> Iterable[str]:
    """Yield the lines of a text that say something."""
    for line in decoded(path.read_bytes()).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
