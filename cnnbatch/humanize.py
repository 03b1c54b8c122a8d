"""Numbers, times and codes as people read them; rounded for the eye, so never parsed back."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from datetime import datetime

LONGEST_NAME = 300

MEANINGS = {
    "not_found": "File not found.",
    "forbidden": "This image alone may not be read.",
    "unreadable": "Its address answers with an error of its own.",
    "empty": "The file has no bytes.",
    "undecodable": "No decoder knows these bytes.",
    "truncated": "The file ends too early.",
    "too_large": "More pixels or bytes than the limits allow.",
    "prepare": "The model's own preparation refused it.",
    "predict": "The network fails on it, also when it is alone.",
    "crash": "It ended the process, twice.",
    "timeout": "It took longer than the time-out, twice.",
    "out_of_memory": "It does not fit into the device's memory, even alone.",
    "forgotten": "It was forgotten at a person's wish.",
}


def meaning(code: str) -> str:
    """Return what an error code means, in a sentence; empty for one that is not known here."""
    return MEANINGS.get(code, "")


def number(value: int) -> str:
    """Return an integer with its thousands apart: ``1,234,567``."""
    return f"{value:,}"


def counted(count: int, noun: str) -> str:
    """Return ``1 worker``, ``2,000 workers``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def clipped(text: str) -> str:
    """Return a name that may be of any length so that a page has room for it."""
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def decimal(value: float) -> str:
    """Return a number to three digits: ``1,230``, ``45.6``, ``0.789``."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float, whole: bool = False) -> str:
    """Return a time: ``0``, ``2.4 ms``, ``42 s``, ``3 min 12 s``, ``2 h 05 min``, ``3 d 4 h``.

    With ``whole`` it has full seconds only, as a clock that is running shows them.
    """
    if seconds < 1 and not whole:
        return f"{decimal(1000 * seconds)} ms" if seconds else "0"
    if seconds < 10 and not whole:
        return f"{decimal(round(seconds, 1))} s"
    return _clock(int(seconds) if whole else round(seconds))


def _clock(whole: int) -> str:
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def moment(time: datetime) -> str:
    """Return a moment to the minute, with its time zone."""
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` was probably meant to be."""
    options = list(known)
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def meant(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known name nearest to ``name``, or an empty string."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def byte_size(count: float) -> str:
    """Return a number of bytes as people read it: ``512 B``, ``1.5 kB``, ``3.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{decimal(count)} {unit}"
        count /= 1000
    return f"{decimal(count)} TB"


def percent(score: float) -> str:
    """Return a fraction as people read it: ``95 %``, ``3.8 %``, ``< 0.1 %``."""
    value = 100 * score
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.5 <= value < 100:
        return "> 99 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"
