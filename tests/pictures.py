"""One small picture in every format, and what Pillow makes of it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cnnbatch.images.decode import DecodeError, Limits, decode

GRAY16 = (np.linspace(0, 65535, 61 * 45).reshape(45, 61)).astype(np.uint16)


def photo() -> Image.Image:
    """45 x 61 pixels, no two alike, coarse and fine structure, not a multiple of 8 in either direction."""
    rows, columns = np.mgrid[0:45, 0:61]
    noise = np.random.default_rng(0).integers(0, 60, (45, 61, 3))
    coarse = np.stack([columns * 3, rows * 4, 190 - rows - columns], axis=-1)
    return Image.fromarray((coarse + noise).clip(0, 255).astype(np.uint8))


def alpha() -> Image.Image:
    picture = photo()
    picture.putalpha(Image.fromarray(np.linspace(0, 255, 45 * 61).reshape(45, 61).astype(np.uint8)))
    return picture


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(data: bytes) -> tuple[torch.Tensor, tuple[int, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1), (upright.height, upright.width)


def assert_is_pillows(data: bytes) -> None:
    (pixels, size), (expected, expected_size) = decode(data), reference(data)
    assert (pixels.dtype, size) == (torch.uint8, expected_size)
    assert torch.equal(pixels, expected)


def refusal(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, limits=limits or Limits())
    assert str(caught.value)
    return caught.value.code


def png16(colour_type: int, samples: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of any colour type, which Pillow can't write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">LLBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gray_photo() -> Image.Image:
    return photo().convert("L")


def palette_with_alphas() -> bytes:
    return saved(alpha().quantize(60), "PNG")


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK: odd colours, and the conversion under test."""
    data = saved(photo().convert("CMYK"), "JPEG")
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


DEEP = {"tiff int32", "tiff float", "tiff 16-bit lzw"}
"""Of `FILES` those whose samples Pillow clips at 255; `tests/images/test_tiff.py` has what is right."""

FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(photo(), "JPEG"),
    "jpeg 4:4:4": lambda: saved(photo(), "JPEG", subsampling=0, quality=97),
    "jpeg 4:2:2": lambda: saved(photo(), "JPEG", subsampling=1),
    "jpeg gray": lambda: saved(gray_photo(), "JPEG"),
    "jpeg progressive": lambda: saved(photo(), "JPEG", progressive=True),
    "jpeg restarts": lambda: saved(photo(), "JPEG", restart_marker_blocks=2),
    "jpeg as RGB": lambda: saved(photo(), "JPEG", keep_rgb=True),
    "jpeg CMYK": lambda: saved(photo().convert("CMYK"), "JPEG"),
    "jpeg YCCK": ycck,
    "mpo": lambda: saved(photo(), "MPO", save_all=True, append_images=[photo().rotate(180)]),
    "png": lambda: saved(photo(), "PNG"),
    "png 1": lambda: saved(photo().convert("1"), "PNG"),
    "png gray": lambda: saved(gray_photo(), "PNG"),
    "png palette": lambda: saved(photo().quantize(99), "PNG"),
    "png palette 1 clear": lambda: saved(photo().quantize(9), "PNG", transparency=3),
    "png palette alphas": palette_with_alphas,
    "png one colour clear": lambda: saved(photo(), "PNG", transparency=photo().getpixel((5, 5))),
    "png LA": lambda: saved(alpha().convert("LA"), "PNG"),
    "png RGBA": lambda: saved(alpha(), "PNG"),
    "png RGB16": lambda: png16(2, np.dstack([GRAY16, GRAY16[::-1], GRAY16[:, ::-1]])),
    "png LA16": lambda: png16(4, np.dstack([GRAY16, GRAY16[::-1]])),
    "png RGBA16": lambda: png16(6, np.dstack([GRAY16, GRAY16[::-1], GRAY16[:, ::-1], GRAY16])),
    "apng": lambda: saved(photo(), "PNG", save_all=True, append_images=[photo().rotate(180)]),
    "webp": lambda: saved(photo(), "WEBP"),
    "webp lossless RGBA": lambda: saved(alpha(), "WEBP", lossless=True, exact=True),
    "webp animated": lambda: saved(photo(), "WEBP", save_all=True, append_images=[photo().rotate(180)]),
    "gif": lambda: saved(photo(), "GIF"),
    "gif clear": lambda: saved(alpha(), "GIF"),
    "gif animated": lambda: saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]),
    "bmp": lambda: saved(photo(), "BMP"),
    "bmp palette": lambda: saved(photo().quantize(9), "BMP"),
    "bmp 1": lambda: saved(photo().convert("1"), "BMP"),
    "tiff": lambda: saved(photo(), "TIFF"),
    "tiff lzw": lambda: saved(photo(), "TIFF", compression="tiff_lzw"),
    "tiff deflate": lambda: saved(photo(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": lambda: saved(photo(), "TIFF", compression="jpeg"),
    "tiff group 4": lambda: saved(photo().convert("1"), "TIFF", compression="group4"),
    "tiff CMYK": lambda: saved(photo().convert("CMYK"), "TIFF"),
    "tiff LAB": lambda: saved(photo().convert("LAB"), "TIFF"),
    "tiff RGBA": lambda: saved(alpha(), "TIFF"),
    "tiff int32": lambda: saved(Image.fromarray(GRAY16.astype(np.int32) << 15), "TIFF"),
    "tiff float": lambda: saved(Image.fromarray(GRAY16.astype(np.float32) / 65535), "TIFF"),
    "tiff 16-bit lzw": lambda: saved(Image.fromarray(GRAY16), "TIFF", compression="tiff_lzw"),
    "ppm": lambda: saved(photo(), "PPM"),
    "pgm": lambda: saved(gray_photo(), "PPM"),
    "pbm": lambda: saved(photo().convert("1"), "PPM"),
    "ico": lambda: saved(alpha(), "ICO", sizes=[(32, 24)]),
    "jp2": lambda: saved(photo(), "JPEG2000"),
    "jp2 tiles": lambda: saved(photo(), "JPEG2000", tile_size=(16, 16)),
    "j2k gray": lambda: saved(gray_photo(), "JPEG2000", no_jp2=True),
    "tga": lambda: saved(photo(), "TGA", compression="tga_rle"),
    "qoi": lambda: saved(photo(), "QOI"),
    "sgi": lambda: saved(photo(), "SGI"),
    "pcx": lambda: saved(photo(), "PCX"),
    "dds": lambda: saved(photo(), "DDS"),
    "avif": lambda: saved(photo(), "AVIF"),
    "avif RGBA": lambda: saved(alpha(), "AVIF"),
}
