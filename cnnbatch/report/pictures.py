"""Small upright pictures of the originals, for pages and notebooks.

A picture that can't be shown is a placeholder that says why: a report never ends for one image,
and a storage that is gone is asked only a few times.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from cnnbatch.errors import EnvironmentFault
from cnnbatch.humanize import percent
from cnnbatch.images.class_map import NotAMap
from cnnbatch.images.formats import recognise
from cnnbatch.images.limits import DecodeError, Limits
from cnnbatch.images.pillow_decode import by_pillow, opened
from cnnbatch.images.quiet import without_warnings
from cnnbatch.report.answers.entry import Guess, MoreView
from cnnbatch.report.prediction import (
    DrawnView,
    Prediction,
    drawn,
    drawn_truth,
    drawn_views,
    more_views,
    side_by_side,
)
from cnnbatch.sources import source_of
from cnnbatch.storage import Allowed, Forbidden, NotFound, OutOfReach, Storage, StorageOptions
from cnnbatch.types import Content, Failure, Shard

if TYPE_CHECKING:
    from cnnbatch.output.reader import Reader
    from cnnbatch.storage.reach import Reach
    from cnnbatch.types import Source

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 32 * 10**6
READERS = 4
FAULTS_BEFORE_GIVING_UP = 3
_WORDS = {"not_found": "no longer where it was", "forbidden": "may not be read from here"}
_OUT_OF_REACH = "of a place that its output may not name"
JPEG_QUALITY = 80

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAY_BE_CLEAR = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "ICO",
    "AVIF",
)  # On white paper; a JPEG made small at once.
WHOLE = 1 << 30
"""Pixels wide and high: a picture as large as it is."""
_DECODING = threading.Lock()  # One at a time, so that memory holds one picture, whatever the threads.


class NotShown(Exception):
    """Why a picture can't be shown, in words for its placeholder."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A small picture with what was predicted; ``image`` is None where ``reason`` says why.

    ``actual`` is the same picture with what is true, ``more`` are further views of it. Of several answers
    that are drawn ``image`` has all beside each other, ``views`` each alone. A notebook displays it; `save`
    writes it with its caption.
    """

    prediction: Prediction
    image: Image.Image | None = field(repr=False)
    reason: str | None = None
    actual: Image.Image | None = field(default=None, repr=False)
    more: Sequence[MoreView] = field(default=(), repr=False)
    views: Sequence[DrawnView] = field(default=(), repr=False)

    def captioned(self) -> Image.Image:
        """Return the picture, or its placeholder, over a line with its best labels."""
        picture = self.image or _placeholder(self.reason or "")
        guesses = [_line(guess) for guess in self.prediction.ranked[:3]]
        lines = guesses if guesses and not self.prediction.problem else [self.prediction.caption]
        font = ImageFont.load_default(16)
        whole = Image.new("RGB", (max(picture.width, 240), picture.height + 12 + 22 * len(lines)), "white")
        whole.paste(picture, ((whole.width - picture.width) // 2, 0))
        for number, text in enumerate(lines):
            ImageDraw.Draw(whole).text((8, picture.height + 6 + 22 * number), text, "#1b1d1f", font)
        return whole

    def save(self, path: str | Path) -> None:
        """Write the picture with its caption; the suffix says the format."""
        self.captioned().save(path)

    def data_uri(self) -> str:
        """Return the picture without caption as a JPEG inside a URI; empty for a placeholder."""
        return "" if self.image is None else jpeg_uri(self.image, JPEG_QUALITY)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.captioned().save(buffer, "PNG")
        return buffer.getvalue()


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """Return a picture as a JPEG inside a URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def hurried(options: StorageOptions) -> Storage:
    """Return a storage that prefers a placeholder over waiting long."""
    return Storage(options.model_copy(update={"timeout_s": 10.0, "retries": 1}))


class Viewer:
    """Reads originals through ``storage``, and those whose ref is known with their ``source``."""

    def __init__(self, storage: Storage, source: Source | None = None) -> None:
        self._storage = storage
        self._source = source
        self._faults = 0

    @property
    def reach(self) -> Reach | None:
        """How far originals may lie; None: anywhere."""
        return self._storage.reach

    def picture(self, prediction: Prediction, side: int, draw: bool = True) -> Picture:
        """Return the picture of an image, at most ``side`` pixels wide and high.

        With ``draw``, what was predicted is drawn on it, and what is true on a second one.
        """
        try:
            image = small(self._read(prediction), side)
            if not draw:
                return Picture(prediction, image)
            if prediction.views:
                views = drawn_views(image, prediction)
                return Picture(prediction, side_by_side([one.image for one in views]), views=views)
            actual, more = drawn_truth(image, prediction), more_views(image, prediction)
            return Picture(prediction, drawn(image, prediction), actual=actual, more=more)
        except NotShown as reason:
            return Picture(prediction, None, str(reason))
        except NotAMap:
            return Picture(prediction, None, "its map can't be read")

    def original(self, prediction: Prediction) -> Image.Image | None:
        """Return the picture of an image as large as it is; None where it can't be read."""
        try:
            return small(self._read(prediction), WHOLE)
        except NotShown:
            return None

    def pictures(
        self,
        many: Iterable[Prediction],
        side: int,
        advance: Callable[[int], None] = lambda pictures: None,
        draw: bool = True,
    ) -> list[Picture]:
        """Return the pictures of ``many``, in order; ``advance`` is called after each."""
        found = []
        with ThreadPoolExecutor(READERS, thread_name_prefix="pictures") as pool:
            for picture in pool.map(lambda one: self.picture(one, side, draw), many):
                found.append(picture)
                advance(1)
        return found

    def _read(self, prediction: Prediction) -> Content | Failure:
        if self._faults >= FAULTS_BEFORE_GIVING_UP:
            raise NotShown("its storage does not answer")
        try:
            if self._source is None or prediction.ref is None:
                return self._storage.read(prediction.uri, limit=MOST_BYTES)
            (reader,) = self._source.read(Shard(0, (prediction.ref,)))
            return reader()
        except NotFound:
            raise NotShown(_WORDS["not_found"]) from None
        except OutOfReach:
            raise NotShown(_OUT_OF_REACH) from None
        except Forbidden:
            raise NotShown(_WORDS["forbidden"]) from None
        except EnvironmentFault:
            self._faults += 1
            raise NotShown("its storage does not answer") from None
        except Exception as fault:  # Whatever else one address does is said in its placeholder.
            raise NotShown(f"can't be read ({type(fault).__name__})") from None


def viewer_of(result: Reader, allow: Collection[Allowed] | None = None) -> Viewer:
    """Return what reads the originals of an output, without waiting long for any.

    With ``allow`` an output that lies where others may have put it names them as a list does, see
    `cnnbatch.storage.reach`; it may then name what is allowed, too.
    """
    storage = hurried(result.input_storage().options)
    if allow is not None:
        storage = storage.for_list(result.uri, allow)
    return Viewer(storage, source_of(result, storage, allow))


def small(content: Content | Failure, side: int) -> Image.Image:
    """Return what a reader gave as RGB, upright, at most ``side`` pixels wide and high. Raises NotShown."""
    if isinstance(content, Failure):
        raise NotShown(_WORDS.get(content.code, content.message))
    if isinstance(content, bytes):
        return thumbnail(content, side)
    try:
        pixels, _ = content.decode(lambda size: None)
    except Exception as fault:  # Whatever one picture does is said in its placeholder.
        raise NotShown(f"can't be decoded ({type(fault).__name__})") from None
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def thumbnail(data: bytes, side: int) -> Image.Image:
    """Return an encoded image as RGB, upright, at most ``side`` pixels wide and high.

    JPEG is decoded at a fraction of its size. Raises NotShown.
    """
    with _DECODING, without_warnings():
        if recognise(data) in _MAY_BE_CLEAR:
            try:
                with opened(data) as image:
                    return _shrink(image, side)
            except NotShown:
                raise
            except Exception:  # Pillow raises nearly anything; of an intact picture its metadata may be why.
                pass
        return _as_decoded(data, side)


def _as_decoded(data: bytes, side: int) -> Image.Image:
    """Return an image small, its colours those that the network saw."""
    try:
        found = by_pillow(data, Limits(MOST_PIXELS))
    except DecodeError as fault:
        large = fault.code == "too_large"
        raise NotShown("too large to preview" if large else f"can't be decoded ({fault.code})") from None
    small = Image.fromarray(found.pixels)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small.transpose(_UPRIGHT[found.orientation]) if found.orientation in _UPRIGHT else small


def _shrink(image: Image.Image, side: int) -> Image.Image:
    whole = image.width * image.height
    image.draft("RGB", (side, side))  # JPEG only: a half, a quarter or an eighth of the size.
    cost = whole if image.info.get("progressive") else image.width * image.height
    if cost > MOST_PIXELS:
        raise NotShown(f"too large to preview ({whole / 1e6:.0f} megapixels)")
    image.load()
    orientation = image.getexif().get(_ORIENTATION_TAG)
    small = _eight_bits(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
    if small.mode != "RGBA":
        return small.convert("RGB")
    paper = Image.new("RGBA", small.size, "white")
    return Image.alpha_composite(paper, small).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB") if image.mode in ("P", "1", "CMYK", "YCbCr", "LAB", "HSV", "F") else image


def _placeholder(reason: str) -> Image.Image:
    blank = Image.new("RGB", (320, 240), "#e8e8e4")
    ImageDraw.Draw(blank).text((160, 120), reason, "#55585c", ImageFont.load_default(14), anchor="mm")
    return blank


def _line(guess: Guess) -> str:
    return guess.label if guess.score is None else f"{guess.label}  {percent(guess.score)}"
