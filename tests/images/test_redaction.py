"""An error says what kind of file was read, and shows nothing of what is in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.images.decode import DecodeError, decode, full
from cnnbatch.images.inspect import inspect
from cnnbatch.images.redaction import columns, kind_of, said, value
from tests.sourcing import source

SECRET = "hunter2secret"
PASSWD = f"root:{SECRET}:0:0:root:/root:/bin/bash\ndaemon:x:1:1:{SECRET}:/usr/sbin:/usr/sbin/nologin\n"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


BYTES = {
    "text": PASSWD.encode(),
    "a key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n".encode(),
    "short": SECRET.encode(),
    "a PPM": f"P6 {SECRET} {SECRET}\n".encode(),
    "a PPM with a long token": b"P6 " + SECRET.encode() * 9,
    "a plain PPM": f"P3 2 2 255 {SECRET}".encode(),
    "a PNG": png()[:33] + SECRET.encode() * 3,
    "a PNG's chunk": png()[:33] + b"\0\0\0\4" + SECRET[:4].encode() + b"0000" + png()[33:],
    "a TIFF": b"II*\0\x08\0\0\0" + SECRET.encode() * 9,
    "a GIF": b"GIF89a" + SECRET.encode() * 9,
    "a BMP": b"BM" + SECRET.encode() * 9,
    "a WebP": b"RIFF\x20\0\0\0WEBP" + SECRET.encode() * 9,
    "an AVIF": b"\0\0\0\x20ftypavif" + SECRET.encode() * 9,
    "a JPEG": b"\xff\xd8\xff\xe0" + SECRET.encode() * 9,
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_what_is_no_image_is_not_shown(data: bytes) -> None:
    with pytest.raises(DecodeError) as error:
        decode(data, full)
    for message in (str(error.value), *(str(inspect(data, fast).failure) for fast in (True, False))):
        assert SECRET[:4] not in message


LISTS: dict[str, tuple[str, str]] = {
    "passwords as CSV": (PASSWD, ".csv"),
    "passwords as TSV": (PASSWD, ".tsv"),
    "a token as CSV": (SECRET, ".csv"),
    "a quote that does not end": (f'url,x\na.jpg,"{SECRET}', ".csv"),
    "a row too long": (f"url,x\na.jpg,{SECRET},1", ".csv"),
    "as Parquet": (PASSWD, ".parquet"),
    "as JSON": (PASSWD, ".json"),
    "JSON without images": (json.dumps({"password": SECRET}), ".json"),
    "JSON whose images are none": (json.dumps({"images": [SECRET]}), ".json"),
    "JSON whose images have no name": (json.dumps({"images": [{"id": 1, "password": SECRET}]}), ".json"),
    "JSON with a broken number": ('{"images": [{"id": ' + SECRET, ".json"),
    "as a tar": (PASSWD, ".tar"),
}


@pytest.mark.parametrize(("text", "suffix"), LISTS.values(), ids=LISTS)
def test_what_is_no_list_is_not_shown(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"list{suffix}"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        list(source(str(path)).refs())
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"\n <!DOCTYPE html><p>", "a web page"),
        (b"\xef\xbb\xbf<HTML>", "a web page"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"<?xml version='1.0'?><a/>", "an XML file"),
        (b"\0\0\0\x18ftypheic", "a HEIC picture"),
        (b"\0\0\0\x18ftypisom", "a video or picture of the MPEG-4 family"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS, whose file was not fetched"),
        (b"root:x", "text"),
        (b"\x01\x02\x03", "of no known kind"),
    ],
)
def test_known_kinds_of_files_are_named(data: bytes, kind: str) -> None:
    assert kind_of(data) == kind


def test_what_a_message_says_of_values_and_names() -> None:
    assert said(ValueError("Non-decimal-ASCII found in header: b'x'")) == "Non-decimal-ASCII found in header"
    assert said(ValueError("'x'")) == "damaged"
    values: list[Callable[[], object]] = [dict, list, str, int, bool]
    assert [value(make()) for make in values] == [
        "an object with 0 fields",
        "a list of 0",
        "text",
        "a number",
        "yes or no",
    ]
    assert columns(["a", "b c", "d:e"]) == "a, b c, 1 whose names are not shown"
    assert columns(["a"]) == "1 whose names are not shown"
