"""Unpacks tar and zip archives that may have been made to do harm: only files and folders, inside the folder.

Links are refused altogether: no known set has any, and they are how an archive writes elsewhere.
"""

from __future__ import annotations

import gzip
import lzma
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnbatch.errors import EnvironmentFault

TARS = (".tar", ".tar.gz", ".tgz")
ZIPS = (".zip",)

LEAST_BYTES = 1 << 30
"""What any archive may unpack to."""

MOST_TIMES = 20
"""A larger one may unpack to so many times its own size; images hardly shrink."""

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # an encrypted member of a zip file
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into ``folder``, over what is there; a file that is no archive is copied.

    Raises:
        EnvironmentFault: a member would leave the folder, is a link or a device, or all are too large;
            or the archive is damaged. What was unpacked before stays in the folder.
    """
    name = archive.name.lower()
    with _whole(archive):
        if name.endswith(TARS):
            _unpack_tar(archive, folder)
        elif name.endswith(ZIPS):
            _unpack_zip(archive, folder)
        else:
            shutil.copyfile(archive, folder / archive.name)


def _unpack_tar(archive: Path, folder: Path) -> None:
    room = _Room(archive)
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() and not member.isdir():
                raise _hostile(archive, f"{member.name!r} is a link or a device")
            _check_name(archive, member.name)
            room.take(member.size)
            tar.extract(member, folder, filter="data")


def _unpack_zip(archive: Path, folder: Path) -> None:
    room = _Room(archive)
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _hostile(archive, f"{member.filename!r} is a link or a device")
            _check_name(archive, member.filename)
            room.take(member.file_size)
            members.extract(member, folder)


class _Room:
    """Counts bytes that members say they have: zipfile and tarfile write no more than that."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._left = max(LEAST_BYTES, MOST_TIMES * archive.stat().st_size)

    def take(self, size: int) -> None:
        """Count a member."""
        self._left -= size
        if self._left < 0:
            raise _hostile(self._archive, "it unpacks to far more than images would")


def _check_name(archive: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if posixpath.isabs(name) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise _hostile(archive, f"{name[:200]!r} leaves the folder")


def _hostile(archive: Path, what: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{archive.name} is not unpacked: {what}", "fetch it from where you trust it, and nothing else of it"
    )


@contextmanager
def _whole(archive: Path) -> Iterator[None]:
    """Turn what the readers say of damage into a fault; those of the disk are others' to tell."""
    try:
        yield
    except _DAMAGE as error:
        raise EnvironmentFault(
            f"{archive.name} is no whole archive: {str(error) or type(error).__name__}", "fetch it again"
        ) from None
