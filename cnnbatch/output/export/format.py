"""What a format of exported predictions says of itself: the base class of the entries in `FORMATS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar

from cnnbatch.output.export.predictions import Predictions
from cnnbatch.storage import Storage


class ExportFormat(ABC):
    """One format: which kinds of answer it can hold, how it is written, and what it has of failed images.

    ``kinds`` are the columns that it holds, one of an output at a time: the first unless a person says
    another. With ``any_column`` it takes every output, and all other columns are plain ones. ``one_by_one``
    are the kinds whose single objects are written or left out by their scores, from ``least_score`` on unless
    a person says another; ``may_lack_scores`` says that scores are written on request alone, ``stuff`` that
    segments are written that are no things. ``failed``, ``gone`` and ``bad_masks`` end the sentences that
    count the images that failed, those gone from the input, and the masks that can't be read.
    """

    kinds: ClassVar[Sequence[str]] = ("objects", "boxes")
    any_column: ClassVar[bool] = False
    one_by_one: ClassVar[Collection[str]] = ("objects", "boxes")
    may_lack_scores: ClassVar[bool] = False
    least_score: ClassVar[float | None] = None
    stuff: ClassVar[bool] = False
    failed: ClassVar[str] = "they have no file"
    gone: ClassVar[str] = "left out"
    bad_masks: ClassVar[str] = "left out"

    @classmethod
    def held(cls, columns: Collection[str]) -> list[str]:
        """Return the kinds that are among an output's columns, and that the format holds."""
        return [kind for kind in cls.kinds if kind in columns]

    @classmethod
    def holds(cls, columns: Collection[str]) -> bool:
        """Say whether the format can hold an output with these columns."""
        return cls.any_column or bool(cls.held(columns))

    @abstractmethod
    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write the predictions to ``to``, a folder or a file; nothing that is there is overwritten."""
