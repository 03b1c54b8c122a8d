"""What one image may cost, and how a file is refused: the words that every decoder here has in common."""

from __future__ import annotations

from dataclasses import dataclass

from cnnbatch.types import Code


class DecodeError(Exception):
    """The image's own bytes are at fault.

    ``code`` is ``empty``, ``undecodable``, ``truncated`` or ``too_large``; ``message`` is for the row.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)  # both, so that it travels between processes whole
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost; the pixels are checked on the header, before anything is decoded.

    ``max_pixels`` counts the original's; its default is where Pillow itself refuses, so a larger
    one reaches plain JPEG only.
    """

    max_pixels: int = 178_956_970
    max_bytes: int = 512 * 2**20

    def check(self, height: int, width: int) -> None:
        """Refuse a picture of more pixels."""
        if height * width > self.max_pixels:
            raise DecodeError("too_large", f"{width} x {height} pixels; the limit is {self.max_pixels}")


LIMITS = Limits()

REVISION = 2
"""Of the decoder itself, raised where any format's pixels change; part of the fingerprint."""
