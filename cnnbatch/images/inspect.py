"""What one image turns out to be: its format, its size, its digest, or why it can't be read.

A full inspection decodes every file, as small as its decoder can, since only that finds damage; a fast one
reads headers.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from PIL import Image

from cnnbatch.images.decode import LIMITS, DecodeError, decode
from cnnbatch.images.formats import BY_PILLOW, recognise
from cnnbatch.images.headers import TURNED, jpeg_facts
from cnnbatch.images.pillow_decode import opened
from cnnbatch.images.quiet import without_warnings
from cnnbatch.images.sizes import stored_size
from cnnbatch.types import Content, Decodable, Failure

if TYPE_CHECKING:
    from torch import Tensor

RAW = "raw pixels"
UNKNOWN = "unknown"

_decoding = threading.BoundedSemaphore(os.cpu_count() or 1)  # many threads read, a few have pixels in memory


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one image turned out to be.

    ``format`` is empty where nothing could be read; ``size`` is (width, height) of the upright picture
    in pixels; ``turned``: a JPEG that EXIF turns or mirrors; ``digest`` has 128 bits, of the file or,
    where there is none, of the pixels.
    """

    size_bytes: int = 0
    format: str = ""
    size: tuple[int, int] | None = None
    turned: bool = False
    digest: bytes | None = None
    failure: Failure | None = None


def inspect(content: Content | Failure, fast: bool = False) -> Inspection:
    """Return what an image is; its ``failure`` is what `cnnbatch.images.decode.decode` refuses it for.

    ``fast`` reads the header of a file alone, so damage behind it is not seen.
    """
    if isinstance(content, Failure):
        return Inspection(failure=content)
    return _inspect_file(content, fast) if isinstance(content, bytes) else _inspect_picture(content)


def _inspect_file(data: bytes, fast: bool) -> Inspection:
    size, failure, turned = None, None, False
    kind = file_format(data)
    try:
        size = _header_size(data) if fast else _decoded_size(data)
        turned = kind == "JPEG" and jpeg_facts(data, 0).orientation > 1
    except DecodeError as error:
        failure = Failure("decode", error.code, error.message)
    digest = blake2b(data, digest_size=16).digest() if data else None
    return Inspection(len(data), kind, size, turned, digest, failure)


def _inspect_picture(picture: Decodable) -> Inspection:
    try:
        with _decoding:
            pixels, (height, width) = picture.decode(lambda size: None)
            digest = _pixel_digest(pixels)
    except DecodeError as error:
        return Inspection(picture.size_bytes, RAW, failure=Failure("decode", error.code, error.message))
    return Inspection(picture.size_bytes, RAW, (width, height), digest=digest)


def _decoded_size(data: bytes) -> tuple[int, int]:
    """Decode as small as can be, which meets every byte all the same; return (width, height)."""
    with _decoding:
        height, width = decode(data, lambda size: (1, 1))[1]
    return width, height


def _pixel_digest(pixels: Tensor) -> bytes:
    shape = repr(tuple(pixels.shape)).encode()
    return blake2b(shape + pixels.contiguous().numpy().tobytes(), digest_size=16).digest()


def file_format(data: bytes) -> str:
    """Return a file's format by its bytes, in Pillow's words; `UNKNOWN` where they tell none."""
    return recognise(data) or UNKNOWN


def _header_size(data: bytes) -> tuple[int, int]:
    """Return the upright (width, height) that a file's header states; raises DecodeError as `decode` does."""
    if len(data) > LIMITS.max_bytes or file_format(data) not in BY_PILLOW:
        return _decoded_size(data)  # which refuses it at once, or knows better
    size, turn = _header(data)
    if size[0] * size[1] > LIMITS.max_pixels:
        raise DecodeError("too_large", f"{size[0]} x {size[1]} pixels; the limit is {LIMITS.max_pixels}")
    return size[::-1] if turn in TURNED else size


def _header(data: bytes) -> tuple[tuple[int, int], int]:
    """Return a header's (width, height) and EXIF's orientation, 1 where Pillow turns the size itself."""
    try:
        with without_warnings(), opened(data) as image:
            return stored_size(image)
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", str(error)) from error
    except (
        Exception
    ):  # Pillow's readers raise nearly every built-in exception; some files it can't read alone.
        return _decoded_size(data), 1
