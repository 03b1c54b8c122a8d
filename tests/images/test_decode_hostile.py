"""Files made to break readers cost little, raise one exception, and warn nobody."""

from __future__ import annotations

import csv
import io
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnbatch.images.decode import DecodeError, Limits, decode
from cnnbatch.images.formats import HEIF_EXTRA, has_extra, recognise
from tests.pictures import FILES, palette_with_alphas, reference, refusal, saved
from tests.places import CHECKOUT

# ---- hostile files cost little


def bombs() -> Iterator[tuple[str, bytes]]:
    jpeg = FILES["jpeg"]()
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "JPEG that claims 4,000 megapixels", jpeg[:frame] + b"\xfa\0\xfa\0" + jpeg[frame + 4 :]
    png = FILES["png"]()
    head = png[12:16] + struct.pack(">LL", 60000, 60000) + png[24:29]
    yield "PNG that claims 3,600", png[:12] + head + struct.pack(">L", zlib.crc32(head)) + png[33:]
    gif = FILES["gif"]()
    yield "GIF that claims 4,294", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]
    webp = FILES["webp"]()
    assert webp[12:16] == b"VP8 "
    yield "WebP that claims 268", webp[:26] + b"\xff\x3f\xff\x3f" + webp[30:]
    progressive = FILES["jpeg progressive"]()
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "JPEG of a thousand scans", progressive[:-2] + scan * 1000 + b"\xff\xd9"


@pytest.mark.parametrize(("name", "data"), list(bombs()), ids=[name for name, _ in bombs()])
def test_bombs_are_refused_at_once(name: str, data: bytes) -> None:
    started = time.perf_counter()
    assert refusal(data) == "too_large", name
    assert time.perf_counter() - started < 0.5


def memory_taken(files: list[bytes]) -> int:
    """Bytes by which a fresh process grows when it decodes ``files``."""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss has another unit elsewhere")
    program = f"""
import pickle, resource, sys
sys.path.insert(0, {str(CHECKOUT)!r})
from cnnbatch.images.decode import decode, DecodeError
files = pickle.load(sys.stdin.buffer)
decode(files.pop())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in files:
    try:
        decode(data)
    except DecodeError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    sent = pickle.dumps([*files, FILES["png"]()])
    done = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.slow
def test_bombs_take_no_memory() -> None:
    """All bombs, and a JPEG header within the limit that has nothing behind it."""
    jpeg = FILES["jpeg"]()
    frame = jpeg.index(b"\xff\xc0") + 5
    large = jpeg[:frame] + struct.pack(">HH", 13000, 13000) + jpeg[frame + 4 :]
    assert refusal(large) == "truncated"
    assert memory_taken([data for _, data in bombs()] + [large]) < 20e6


@pytest.mark.slow
def test_a_large_picture_takes_bounded_memory() -> None:
    """Pillow's own byte a pixel for a palette, the result's three, and a band."""
    assert memory_taken([saved(Image.new("P", (8000, 6000)), "PNG")]) < 5 * 48e6


BYTES = {name: make() for name, make in FILES.items()}


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(BYTES)), seed=st.integers(0, 2**32), changes=st.integers(1, 12))
def test_corruption_raises_nothing_but_decode_error(name: str, seed: int, changes: int) -> None:
    chance, data = random.Random(seed), bytearray(BYTES[name])
    for _ in range(changes):
        at = chance.randrange(min(len(data), chance.choice((64, 400, len(data)))))
        how = chance.random()
        if how < 0.6:
            data[at] = chance.choice((0, 255, data[at] ^ 1 << chance.randrange(8)))
        elif how < 0.8:
            data[at : at + 4] = chance.randbytes(4)
        else:
            data[at:at] = data[chance.randrange(len(data)) :][: chance.randrange(80)]
    started = time.perf_counter()
    try:
        pixels, size = decode(bytes(data), limits=Limits(max_pixels=10**6))
    except DecodeError as error:
        said = error.message
    else:
        said = ""
        assert pixels.dtype == torch.uint8
        assert tuple(pixels.shape) == (3, *size)
    assert "Warning" not in said
    assert time.perf_counter() - started < 5


# ---- warnings


def remarkable() -> Iterator[bytes]:
    """Files that Pillow decodes with a warning."""
    yield palette_with_alphas()
    apng = FILES["apng"]()
    at = apng.index(b"acTL") + 4
    body = b"acTL" + bytes(8)
    yield apng[: at - 4] + body + struct.pack(">L", zlib.crc32(body)) + apng[at + 12 :]  # no frames
    tiff = FILES["tiff"]()
    (start,) = struct.unpack_from("<L", tiff, 4)
    entry = next(at for at in range(start + 2, len(tiff), 12) if tiff[at : at + 2] == b"\x15\x01")
    yield tiff[: entry + 4] + struct.pack("<L", 2) + tiff[entry + 8 :]  # two samples-per-pixel


def test_the_remarkable_files_make_pillow_warn() -> None:
    for data in remarkable():
        with pytest.warns(UserWarning, match="Transparency|APNG|too many entries"):
            Image.open(io.BytesIO(data)).convert("RGB")


def test_no_warning_escapes_and_none_of_others_is_lost() -> None:
    """Eight threads decode what Pillow warns of; a ninth goes on to hear its own warnings."""
    files, heard, stop = list(remarkable()), [0, 0], threading.Event()

    def other() -> None:
        while not stop.is_set():
            heard[0] += 1
            try:
                warnings.warn("mine", UserWarning, stacklevel=1)
            except UserWarning:
                heard[1] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listener = threading.Thread(target=other)
        listener.start()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(decode, files * 40))
        stop.set()
        listener.join()
    assert heard[0] == heard[1] > 0


# ---- the collection of hostile files

REFUSED = {
    "pillow/crash-1185209cf7655b5aed8ae5e77784dfdd18ab59e9.tif": "truncated",
    "pillow/crash-f46f5b2f43c370fe65706c11449f567ecc345e74.tif": "truncated",
    "pillow/oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": "truncated",
    "pillow/truncated_image.png": "truncated",
}


@pytest.mark.slow
def test_hostile_files(shared: Path) -> None:
    """All 109 files: Pillow's pixels, or 16-bit gray, or the code for what Pillow made of them."""
    root = shared / "data" / "hostile"
    if not root.is_dir():
        pytest.skip("no hostile files beside the checkout")
    with (root / "manifest.csv").open(encoding="utf-8") as manifest:
        rows = list(csv.DictReader(manifest))
    wrong = [row["file"] for row in rows if not hostile_is_right(row, (root / row["file"]).read_bytes())]
    assert wrong == []
    assert len(rows) == 109


def closed(data: bytes) -> bytes:
    """A PNG that ends in the head of another IDAT chunk, with its end in place of that."""
    end = b"\0\0\0\0IEND" + struct.pack(">L", zlib.crc32(b"IEND"))
    return data[:-8] + end if data.startswith(b"\x89PNG") and data.endswith(b"IDAT") else data


def hostile_is_right(row: dict[str, str], data: bytes) -> bool:
    if recognise(data) == "HEIF" and has_extra(HEIF_EXTRA):
        import pillow_heif

        shown = pillow_heif.open_heif(io.BytesIO(data)).to_pillow().convert("RGB")
        return np.array_equal(decode(data)[0].permute(1, 2, 0), np.asarray(shown))
    if row["rgb"] != "ok" or row["file"] in REFUSED:
        bomb = "DecompressionBomb" in row["load"]
        return refusal(data) == REFUSED.get(row["file"], "too_large" if bomb else "undecodable")
    pixels, size = decode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deep = np.asarray(Image.open(io.BytesIO(closed(data))))
    if row["mode"] == "I;16" or (row["mode"] == "I" and row["format"] == "PPM"):
        return torch.equal(pixels[0], torch.from_numpy((deep >> 8).astype(np.uint8)))
    if row["mode"] == "I":  # Signed numbers of 32 bits, from their full depth.
        return torch.equal(
            pixels[0], torch.from_numpy(((deep.astype(np.int64) + 2**31) >> 24).astype(np.uint8))
        )
    expected, expected_size = reference(closed(data))
    return torch.equal(pixels, expected) and size == expected_size
