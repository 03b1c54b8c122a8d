"""Numbers, times and codes as people read them; rounded for the eye, so never parsed back."""

from __future__ import annotations

import math
from datetime import datetime

LONGEST_NAME = 300

MEANINGS = {
    "not_found": "The address names nothing.",
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
}


def meaning(code: str) -> str:
    """Return what an error code means, in a sentence; empty for one that is not known here."""
    return MEANINGS.get(code, "")


def number(value: int) -> str:
    """Return an integer with its thousands apart: ``1,234,567``."""
    return f"{value:,}"


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


def duration(seconds: float) -> str:
    """Return a time: ``0``, ``2.4 ms``, ``42 s``, ``3 min 12 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 1:
        return f"{decimal(1000 * seconds)} ms" if seconds else "0"
    if seconds < 10:
        return f"{decimal(round(seconds, 1))} s"
    whole = round(seconds)
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
