"""The own parsers say what Pillow says, and nothing where it would raise."""

from __future__ import annotations

import io
import struct
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cnnbatch.images.headers import ends_early, jpeg_facts, orientation

KINDS = {3: "H", 4: "L", 8: "h", 9: "l"}


def exif(order: str, kind: int, values: list[int], before: list[int], after: list[int]) -> bytes:
    """A TIFF whose first directory holds LONGs ``before`` and ``after`` the orientation."""
    entries = len(before) + 1 + len(after)
    end = 8 + 2 + 12 * entries + 4
    data = struct.pack(f"{order}{len(values)}{KINDS[kind]}", *values)
    place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(f"{order}L", end)
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, entries)
    out += b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, 7) for tag in before)
    out += struct.pack(f"{order}HHL", 0x0112, kind, len(values)) + place
    out += b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, 7) for tag in after)
    return out + bytes(4) + data


def jpeg_with(*segments: bytes) -> bytes:
    """A gray 1 x 2 JPEG with APP1 segments."""
    buffer = io.BytesIO()
    Image.new("L", (1, 2)).save(buffer, "JPEG")
    plain = buffer.getvalue()
    app1 = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in segments)
    return plain[:2] + app1 + plain[2:]


def pillows(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    return value if value in range(1, 9) else 1


tags = st.lists(st.integers(0x0100, 0x0111) | st.integers(0x0113, 0x0130), max_size=4)


@given(
    order=st.sampled_from("<>"),
    kind=st.sampled_from(sorted(KINDS)),
    values=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    before=tags,
    after=tags,
)
def test_orientation_is_pillows(
    order: str, kind: int, values: list[int], before: list[int], after: list[int]
) -> None:
    data = jpeg_with(b"Exif\0\0" + exif(order, kind, values, before, after))
    assert jpeg_facts(data, 9).orientation == pillows(data)


@pytest.mark.parametrize("form", ['tiff:Orientation="{}"', "<tiff:Orientation>{}</tiff:Orientation>"])
@pytest.mark.parametrize("value", range(10))
def test_orientation_in_xmp(form: str, value: int) -> None:
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + form.format(value).encode()
    assert jpeg_facts(jpeg_with(xmp), 9).orientation == pillows(jpeg_with(xmp))
    both = jpeg_with(xmp, b"Exif\0\0" + exif("<", 3, [6], [], []))
    assert jpeg_facts(both, 9).orientation == pillows(both) == 6


def test_exif_cut_into_segments() -> None:
    whole = exif(">", 3, [8], [0x0100] * 4, [])
    data = jpeg_with(b"Exif\0\0" + whole[:30], b"Exif\0\0" + whole[30:])
    assert jpeg_facts(data, 9).orientation == pillows(data) == 8


@given(st.binary(max_size=80), st.integers(0, 60), st.binary(max_size=8))
def test_malformed_exif_is_upright_or_a_number(noise: bytes, at: int, patch: bytes) -> None:
    whole = exif("<", 3, [6], [0x0100], [0x0113])
    for data in (noise, b"II*\0" + noise, whole[:at], whole[:at] + patch + whole[at + len(patch) :]):
        assert orientation(data, noise) in range(1, 9)


def test_every_orientation_agrees_with_exif_transpose() -> None:
    for value in range(9):
        data = jpeg_with(b"Exif\0\0" + exif("<", 3, [value], [], []))
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (2, 1)
        assert turned == (jpeg_facts(data, 9).orientation >= 5)


def test_scans_are_counted() -> None:
    picture, buffer = Image.new("RGB", (40, 40), "red"), io.BytesIO()
    picture.save(buffer, "JPEG")
    assert jpeg_facts(buffer.getvalue(), 100).is_complete
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", progressive=True)
    facts = jpeg_facts(buffer.getvalue(), 100)
    assert (facts.is_complete, facts.scans) == (True, 10)
    assert jpeg_facts(buffer.getvalue(), 3).scans == 4
    # A thumbnail inside a segment has markers that are none, and so has what follows the picture.
    assert jpeg_facts(jpeg_with(b"\xff\xda\xff\xd9\xff\xda") + b"\xff\xda" * 9, 100).scans == 1


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"\0\0\1\0", b"\0\0\0\1ftyp"]),
)
def test_any_bytes_are_read(noise: bytes, magic: bytes) -> None:
    assert ends_early(magic + noise) in (True, False)
    assert jpeg_facts(magic + noise, 5).orientation in range(1, 9)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body


def test_scans_of_single_components_are_all_counted_and_known_to_be_complete() -> None:
    """The decoder reads every scan of such a file up to its end, whether the picture is whole or not."""
    frame = segment(0xC0, bytes((8, 0, 9, 0, 9, 3, 1, 17, 0, 2, 17, 0, 3, 17, 0)))
    scans = [segment(0xDA, bytes((1, component, 0, 0, 63, 0))) + b"data" for component in (1, 2, 3)]
    for count in range(4):
        facts = jpeg_facts(b"\xff\xd8" + frame + b"".join(scans[:count]), 100)
        assert (facts.is_complete, facts.scans) == (count == 3, max(count, 1))
    assert jpeg_facts(b"\xff\xd8" + frame + b"".join(scans) * 100, 100).scans == 101


def test_a_progressive_picture_is_complete_with_the_last_bit_of_its_coefficients() -> None:
    """ITU-T T.81, annex G: a scan's Al says how many low bits are still to come."""
    frame = segment(0xC2, bytes((8, 0, 9, 0, 9, 1, 1, 17, 0)))
    whole = [(0, 0, 0x01), (1, 5, 0x02), (6, 63, 0x02), (1, 63, 0x21), (0, 0, 0x10), (1, 63, 0x10)]
    data = b"\xff\xd8" + frame
    for number, scan in enumerate(whole):
        data += segment(0xDA, bytes((1, 1, 0, *scan))) + b"data"
        assert jpeg_facts(data, 100).is_complete == (number == 5)
