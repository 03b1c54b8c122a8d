"""Small upright pictures of the originals, for pages and notebooks.

A picture that can't be shown is a placeholder that says why: a report never ends for one image,
and a storage that is gone is asked only a few times.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from cnnbatch.errors import EnvironmentFault
from cnnbatch.images.formats import recognise
from cnnbatch.images.limits import DecodeError, Limits
from cnnbatch.images.pillow_decode import by_pillow, opened
from cnnbatch.images.quiet import without_warnings
from cnnbatch.report.marked import marked
from cnnbatch.storage import Forbidden, NotFound, Storage, StorageOptions
from cnnbatch.truth import SURE
from cnnbatch.types import Content, Failure, ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.types import Source
from cnnbatch.humanize import percent

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 32 * 10**6
READERS = 4
FAULTS_BEFORE_GIVING_UP = 3
_WORDS = {"not_found": "no longer where it was", "forbidden": "may not be read from here"}
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
_DECODING = threading.Lock()  # One at a time, so that memory holds one picture, whatever the threads.


class NotShown(Exception):
    """Why a picture can't be shown, in words for its placeholder."""


@dataclass(frozen=True, slots=True)
class Guess:
    """One label and its score, where the task gives one."""

    label: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of an image: its class, or its objects."""

    label: str | None = None
    objects: tuple[Mapping[str, Any], ...] | None = None


class Alarm(NamedTuple):
    """An image's most confident detection of what is not there; ``found`` of its ``truths`` were found."""

    label: str
    score: float
    truths: int
    found: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a row says of its image; ``size`` is (height, width).

    ``guesses`` are its labels, the best first; ``objects`` what was detected; ``ref`` is where it lies.
    ``truth`` and ``alarm`` are known of images that were judged.
    """

    key: str
    uri: str
    size: tuple[int, int] | None = None
    guesses: tuple[Guess, ...] = ()
    problem: str | None = None
    objects: tuple[Mapping[str, Any], ...] | None = None
    ref: ImageRef | None = None
    truth: Truth | None = None
    alarm: Alarm | None = None

    @property
    def right(self) -> bool | None:
        """Whether the best label is the true one; None where it is not known."""
        if self.truth is None or self.truth.label is None or not self.guesses:
            return None
        return self.truth.label == self.guesses[0].label

    @property
    def actual(self) -> str:
        """What is true, in words; empty where that is not known."""
        if self.truth is None:
            return ""
        return counted(self.truth.objects) if self.truth.objects is not None else self.truth.label or ""

    @property
    def predicted(self) -> str:
        """What was predicted, in words, as they stand beside `actual`: ``dog (0.97)``."""
        if self.objects is not None or not self.guesses:
            return self.caption
        best = self.guesses[0]
        return best.label if best.score is None else f"{best.label} ({best.score:.2f})"

    @property
    def caption(self) -> str:
        """The best label with its score, what was detected, or what went wrong; empty if nothing is."""
        if self.problem is None and self.objects is not None:
            return counted(self.objects)
        if self.problem or not self.guesses:
            return self.problem or ""
        best = self.guesses[0]
        return best.label if best.score is None else f"{best.label}, {percent(best.score)}"


@dataclass(frozen=True, slots=True)
class Picture:
    """A small picture with what was predicted; ``image`` is None where ``reason`` says why.

    ``actual`` is the same picture with its true objects. A notebook displays it; `save` writes it with its
    caption.
    """

    seen: Seen
    image: Image.Image | None = field(repr=False)
    reason: str | None = None
    actual: Image.Image | None = field(default=None, repr=False)

    def captioned(self) -> Image.Image:
        """Return the picture, or its placeholder, over a line with its best labels."""
        picture = self.image or _placeholder(self.reason or "")
        guesses = [_line(guess) for guess in self.seen.guesses[:3]]
        lines = guesses if guesses and not self.seen.problem else [self.seen.caption]
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


def seen(
    row: Mapping[str, Any],
    ref: ImageRef | None = None,
    truth: Truth | None = None,
    alarm: Alarm | None = None,
) -> Seen:
    """Return what ``row`` says, from whichever of the columns label, score, top and objects it has."""
    ranked = row.get("top") or ([row] if row.get("label") is not None else [])
    error = row.get("error")
    height, width = row.get("height"), row.get("width")
    return Seen(
        key=row["key"],
        uri=row["uri"],
        size=(height, width) if height and width else None,
        guesses=tuple(Guess(str(guess["label"]), guess.get("score")) for guess in ranked),
        problem=f"{error['code']}: {error['message']}" if error else None,
        objects=None if row.get("objects") is None else tuple(_shown(row["objects"], alarm)),
        ref=ref,
        truth=truth,
        alarm=alarm,
    )


def _shown(objects: Iterable[Mapping[str, Any]], alarm: Alarm | None) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that are sure, and the false alarm, marked as such."""
    for one in objects:
        if alarm and (one["label"], one["score"]) == (alarm.label, alarm.score):
            yield {**one, "alarm": True}
        elif is_sure(one):
            yield one


def is_sure(one: Mapping[str, Any]) -> bool:
    """Say whether a detected object is shown and counted: what has no score is truth."""
    return one["score"] is None or one["score"] >= SURE


def counted(objects: Iterable[Mapping[str, Any]]) -> str:
    """Return objects as people count them: ``2 person, dog``; the most frequent first."""
    counts = Counter(str(one["label"]) for one in objects)
    words = [label if count == 1 else f"{count} {label}" for label, count in counts.most_common()]
    return ", ".join(words) or "nothing"


def hurried(options: StorageOptions) -> Storage:
    """Return a storage that prefers a placeholder over waiting long."""
    return Storage(options.model_copy(update={"timeout_s": 10.0, "retries": 1}))


class Viewer:
    """Reads originals through ``storage``, and those whose ref is known with their ``source``."""

    def __init__(self, storage: Storage, source: Source | None = None) -> None:
        self._storage = storage
        self._source = source
        self._faults = 0

    def picture(self, seen: Seen, side: int) -> Picture:
        """Return the picture of ``seen``, at most ``side`` pixels wide and high."""
        try:
            image = small(self._read(seen), side)
        except NotShown as reason:
            return Picture(seen, None, str(reason))
        if seen.size is None:
            return Picture(seen, image)
        true = seen.truth.objects if seen.truth else None
        actual = None if true is None else marked(image.copy(), seen.size[::-1], true)
        return Picture(seen, marked(image, seen.size[::-1], seen.objects or ()), actual=actual)

    def pictures(
        self, many: Iterable[Seen], side: int, advance: Callable[[int], None] = lambda pictures: None
    ) -> list[Picture]:
        """Return the pictures of ``many``, in order; ``advance`` is told of each."""
        found = []
        with ThreadPoolExecutor(READERS, thread_name_prefix="pictures") as pool:
            for picture in pool.map(lambda seen: self.picture(seen, side), many):
                found.append(picture)
                advance(1)
        return found

    def _read(self, seen: Seen) -> Content | Failure:
        if self._faults >= FAULTS_BEFORE_GIVING_UP:
            raise NotShown("its storage does not answer")
        try:
            if self._source is None or seen.ref is None:
                return self._storage.read(seen.uri, limit=MOST_BYTES)
            (reader,) = self._source.read(Shard(0, (seen.ref,)))
            return reader()
        except NotFound:
            raise NotShown(_WORDS["not_found"]) from None
        except Forbidden:
            raise NotShown(_WORDS["forbidden"]) from None
        except EnvironmentFault:
            self._faults += 1
            raise NotShown("its storage does not answer") from None
        except Exception as fault:  # Whatever else one address does is told in its placeholder.
            raise NotShown(f"can't be read ({type(fault).__name__})") from None


def small(content: Content | Failure, side: int) -> Image.Image:
    """Return what a reader gave as RGB, upright, at most ``side`` pixels wide and high. Raises NotShown."""
    if isinstance(content, Failure):
        raise NotShown(_WORDS.get(content.code, content.message))
    if isinstance(content, bytes):
        return thumbnail(content, side)
    try:
        pixels, _ = content.decode(lambda size: None)
    except Exception as fault:  # Whatever one picture does is told in its placeholder.
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
