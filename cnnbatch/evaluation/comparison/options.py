"""How outputs are compared, and what the comparison must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cnnbatch.errors import UserError
from cnnbatch.truth import SURE


class Gate(NamedTuple):
    """The least that ``metric`` may be: of ``agreement`` itself, of any other what B gains over A.

    That is B's value less A's, or A's less B's where less is better.
    """

    metric: str
    least: float


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """How outputs are compared.

    Boxes whose IoU is at least ``iou`` are the same; objects that score less than ``score_threshold`` don't
    count; ``gates`` are what the comparison must reach; ``column`` is which of several answers is compared,
    None: the first that both outputs have. Raises UserError for numbers out of range.
    """

    iou: float = 0.5
    score_threshold: float = SURE
    gates: Sequence[Gate] = ()
    column: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise UserError(f"--iou: expected a number above 0 and at most 1, got {self.iou:g}")
        if not 0 <= self.score_threshold <= 1:
            raise UserError(f"--score-threshold: expected a number from 0 to 1, got {self.score_threshold:g}")
