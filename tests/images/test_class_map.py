"""Maps of classes: what is written is what is read, by this code, by Pillow and by pycocotools."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from cnnbatch.images import class_map
from cnnbatch.images.class_map import NotAMap

MAPS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 1, 7, 254, 255]))
)


@given(MAPS)
def test_a_png_has_the_numbers_as_its_values(numbers: class_map.Numbers) -> None:
    data = class_map.png(numbers)
    assert np.array_equal(class_map.from_png(data), numbers)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), numbers)


@given(MAPS)
def test_run_lengths_are_cocos_a_class(numbers: class_map.Numbers) -> None:
    found = class_map.runs(numbers, 255)
    assert [one["class"] for one in found] == [number for number in np.unique(numbers) if number < 255]
    for one in found:
        expected = coco.encode(np.asfortranarray((numbers == one["class"]).astype(np.uint8)))
        assert one["mask"] == {"size": list(numbers.shape), "counts": expected["counts"].decode()}
    assert np.array_equal(class_map.from_runs(found, numbers.shape), numbers)


def test_sixteen_bits() -> None:
    numbers = np.array([[0, 300], [65_535, 1]], np.uint16)
    assert np.array_equal(class_map.from_png(class_map.png(numbers)), numbers)
    assert np.array_equal(class_map.from_runs(class_map.runs(numbers, 400), (2, 2)), numbers)


def gray_png(rows: list[list[int]], bits: int) -> bytes:
    """Return a gray PNG file of 1, 2 or 4 bits a pixel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    texts = ("".join(format(value, f"0{bits}b") for value in row) for row in rows)
    packed = [text + "0" * (-len(text) % 8) for text in texts]
    lines = b"".join(b"\0" + int(text, 2).to_bytes(len(text) // 8) for text in packed)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_a_pixel_are_values_and_no_brightness(bits: int) -> None:
    rows = [[0, 1, 2**bits - 1], [1, 0, 1]]
    assert class_map.from_png(gray_png(rows, bits)).tolist() == rows


@given(MAPS, st.dictionaries(st.integers(0, 255), st.integers(0, 400)), st.sampled_from([255, 65_535]))
def test_numbers_are_translated_one_by_one(
    numbers: class_map.Numbers, places: dict[int, int], none: int
) -> None:
    found = class_map.translated(numbers, places, none)
    assert found.tolist() == [[places.get(one, none) for one in row] for row in numbers.tolist()]
    assert (found.dtype == np.uint8) == (max(none, *places.values(), 0) <= 255)


def test_the_colours_are_vocs() -> None:
    found = class_map.colours(256)
    assert found[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert found[15].tolist() == [192, 128, 128]  # person
    assert found[20].tolist() == [0, 64, 128]  # tvmonitor
    assert found[255].tolist() == [224, 224, 192]  # void


def file_of(image: Image.Image, kind: str) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (file_of(Image.new("RGB", (4, 4)), "PNG"), r"one value a pixel .* got colours \(RGB\)"),
        (file_of(Image.new("L", (4, 4)), "JPEG"), "expected a PNG file, got JPEG, whose values are not kept"),
        (file_of(Image.new("L", (64, 64)), "PNG")[:60], "no whole PNG file"),
        (b"", "it is no whole PNG file"),
        (b"a text", "it is no whole PNG file"),
    ],
)
def test_what_is_no_map_is_said(data: bytes, words: str) -> None:
    with pytest.raises(NotAMap, match=words):
        class_map.from_png(data)


def test_a_mask_of_another_size_is_no_part_of_a_map() -> None:
    (one,) = class_map.runs(np.zeros((3, 4), np.uint8), 1)
    with pytest.raises(NotAMap, match="not of 3 x 4 pixels"):
        class_map.from_runs([one], (4, 3))
