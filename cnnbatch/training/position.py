"""Where a training stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """The next step to take, of the epoch that it is in; both count from 0."""

    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """Return it as text that sorts as positions do."""
        return f"{self.epoch:06}-{self.step:09}"
