"""What is known of a data set: its facts, how a copy of it may be laid out, and how each part is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

ALL = "all"
"""The name of the list of all images, among those that fetching writes."""


@dataclass(frozen=True)
class SplitReading:
    """Fields of a job's input that read a part of a set; paths are relative to the set's folder.

    ``masks`` is what ``truth`` is where patches are asked for. ``ignore`` are classes of maps that do not
    count where the job names none; ``others`` are formats that the same files may be read in.
    """

    url: str = ""
    format: str = "files"
    key: str | None = None
    label: str | None = None
    truth: str | None = None
    split: str | tuple[str, ...] | None = None
    masks: str | None = None
    ignore: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSetLayout:
    """One way a copy of a set may lie in its folder: that of a folder which has all ``marks``.

    A mark is a path; its last part may have a ``*``. ``readings`` has the parts by name, and by None what
    is read where a job names no part. ``words`` say in messages what the folder holds.
    """

    marks: tuple[str, ...]
    readings: Mapping[str | None, SplitReading]
    words: str

    @property
    def splits(self) -> list[str]:
        """The names of its parts."""
        return [name for name in self.readings if name is not None]


@dataclass(frozen=True)
class Remote:
    """A file to download, and a digest of it (hexadecimal) as its publisher or torchvision has it.

    Where both are known, the SHA-256 counts.
    """

    url: str
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def digest(self) -> tuple[str, str]:
        """The name of the algorithm, and what it has to give."""
        if self.sha256 is not None:
            return "sha256", self.sha256.lower()
        if self.md5 is None:
            raise ValueError(f"{self.url} has no digest that it could be checked by")
        return "md5", self.md5.lower()


Lists = Mapping[str, Iterable[tuple[str, str]]]
"""The images of each part, as (path below the set's folder, class)."""


@dataclass(frozen=True)
class Download:
    """Where a set is fetched from, in bytes all together.

    ``files`` looks them up, for most addresses are torchvision's, whose import takes its time; ``inner``
    are archives in the archives; ``lists`` makes the lists of a set whose truth no format reads.
    """

    size_bytes: int
    files: Callable[[], Sequence[Remote]]
    inner: tuple[str, ...] = ()
    lists: Callable[[Path], Lists] | None = None


@dataclass(frozen=True)
class DataSet:
    """A set that jobs may name; what is fetched has the first of its ``layouts``.

    ``folders`` are further names of its folder below ``CNNBATCH_DATA``; ``default`` says which part a job
    reads that names none.
    """

    name: str
    title: str
    images: int
    licence: str
    homepage: str
    layouts: tuple[DataSetLayout, ...]
    folders: tuple[str, ...] = ()
    download: Download | None = None
    default: str = ALL

    @property
    def splits(self) -> list[str]:
        """The names of its parts, of any layout."""
        return list(dict.fromkeys(split for layout in self.layouts for split in layout.splits))


def whole(reading: SplitReading) -> dict[str | None, SplitReading]:
    """Return the readings of a set that has no parts."""
    return {None: reading}


def tree(url: str, *splits: str, format: str = "voc") -> dict[str | None, SplitReading]:
    """Return the readings of a folder whose format itself knows the parts."""
    return {
        None: SplitReading(url, format),
        **{split: SplitReading(url, format, split=split) for split in splits},
    }


def listed(*splits: str) -> dict[str | None, SplitReading]:
    """Return the readings of the lists that fetching writes; keys are paths below the set's folder."""
    names: dict[str | None, str] = {None: ALL, **{split: split for split in splits}}
    return {split: SplitReading(f"{name}.csv", "list", "file", "label") for split, name in names.items()}
