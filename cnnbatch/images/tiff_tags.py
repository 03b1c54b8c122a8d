"""What the first directory of a TIFF says of its picture: TIFF 6.0 (Adobe, 1992), section 8, and BigTIFF."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cnnbatch.images.headers import TagEntry, directory
from cnnbatch.images.limits import DecodeError, Limits

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
COLOURS = {
    WHITE_IS_ZERO: 1,
    BLACK_IS_ZERO: 1,
    RGB: 3,
    PALETTE: 1,
    SEPARATED: 4,
    YCBCR: 3,
    CIELAB: 3,
    ICCLAB: 3,
}
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
_ASSOCIATED = 1
_MOST_BYTES = 8 * 3 << 16  # of one tag's values: a palette of 16 bits has 3 * 65,536 of them


@dataclass(frozen=True)
class Tiff:
    """What the first directory of a file says of its picture, as far as it decides the pixels."""

    data: bytes
    limits: Limits

    @cached_property
    def entries(self) -> dict[int, TagEntry]:
        """The directory."""
        return dict(directory(self.data))

    def values(self, tag: int, *otherwise: Any) -> tuple[Any, ...]:
        """Return the values of a tag, or what stands for them where it is absent."""
        entry = self.entries.get(tag)
        if entry is None:
            return otherwise
        if entry.size > _MOST_BYTES:
            raise DecodeError("undecodable", f"a TIFF whose tag {tag} has {entry.size:,} bytes")
        return struct.unpack_from(entry.layout, self.data, entry.place)

    def number(self, tag: int, otherwise: int = 0) -> int:
        """Return the first value of a tag, which is to be an integer."""
        values = self.values(tag, otherwise)
        if not values or not isinstance(values[0], int):
            raise DecodeError("undecodable", f"a TIFF whose tag {tag} is {values}, expected an integer")
        return values[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored, checked."""
        height, width = self.number(257), self.number(256)
        if height < 1 or width < 1:
            raise DecodeError("undecodable", f"a TIFF of {width} x {height} pixels")
        self.limits.check(height, width)
        return height, width

    @property
    def photometric(self) -> int:
        """PhotometricInterpretation; where it is missing Pillow takes it for WhiteIsZero."""
        return self.number(262)

    @property
    def orientation(self) -> int:
        """EXIF's orientation, 1 to 8."""
        value = self.number(274, 1)
        return value if 1 <= value <= 8 else 1

    @property
    def samples(self) -> int:
        """Samples a pixel."""
        return self.number(277, 1)

    @property
    def bits(self) -> int:
        """Bits of a sample; all have as many, or `refuse_unknown` refuses."""
        return self.number(258, 1)

    @property
    def format(self) -> int:
        """SampleFormat of all samples; undefined ones are taken for unsigned."""
        value = self.number(339, UNSIGNED)
        return UNSIGNED if value == UNDEFINED else value

    @property
    def are_apart(self) -> bool:
        """Whether each sample lies in a plane of its own."""
        return self.number(284, 1) == 2 and self.samples > 1

    @property
    def compression(self) -> int:
        """The scheme's number."""
        return self.number(259, 1)

    @property
    def colours(self) -> int:
        """Samples that are colours; those behind them are extra ones."""
        return COLOURS[self.photometric]

    @property
    def is_associated(self) -> bool:
        """Whether the colours are multiplied by the alpha behind them."""
        extra = self.values(338)
        return bool(extra) and extra[0] == _ASSOCIATED and self.samples > self.colours
