"""Up to what size of a gallery an embedder is fit for searching it, at stated goals, as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor, log, log10

from cnnbatch.index.by_size import AtSize
from cnnbatch.index.growth import strangers_needed

MOST_MISSED = 0.1
"""The share of searches for people who are there that may miss them, where an embedder is called fit."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Up to how many ``rows`` a number keeps its goal, among sizes from ``least`` to ``most``.

    None: not at the least size, or still at the largest one, which ``is_kept`` tells apart.
    """

    rows: float | None
    is_kept: bool
    least: int
    most: int

    def words(self) -> str:
        """Return the number of rows, with two digits of it, or which side of those known it lies on."""
        if self.rows is not None:
            return two_digits(self.rows)
        return f"more than {self.most:,}" if self.is_kept else f"fewer than {self.least:,}"


def fitness(sizes: Sequence[AtSize], rate: float, most_missed: float = MOST_MISSED) -> str:
    """Return up to what size of a gallery the misses are within a goal, at a false positive rate."""
    of_rate = sorted((one for one in sizes if one.threshold.rate == rate), key=lambda one: one.rows)
    known = [one for one in of_rate if one.missed.share is not None]
    ones = f"1 in {1 / rate:,.0f} strangers may be found and 1 in {1 / most_missed:,.0f} people missed"
    goal = f"Where at most {ones}"
    if not known:
        return f"{goal}, up to what size the embedder is fit for search is not known: {_reason(of_rate)}."
    share, low, high = (
        limit(
            [(one.rows, value) for one in known if (value := getattr(one.missed, end)) is not None],
            most_missed,
        )
        for end in ("share", "low", "high")
    )
    spread = f"95 % interval: {high.words()} to {low.words()}"
    if share.rows is None and not share.is_kept:
        nor = "nor at an end of the 95 % interval" if low == high else spread
        return (
            f"{goal}, the embedder is not fit for search, not even among {share.least:,} embeddings ({nor})."
        )
    measured = max((one.rows for one in known if not one.is_extrapolated), default=0)
    about = ", which is extrapolated" if share.rows is None or share.rows > measured else ""
    return f"{goal}, the embedder is fit for searches of up to {share.words()} embeddings{about} ({spread})."


def support(sizes: Sequence[AtSize], rate: float, rows: int) -> str | None:
    """Return where what is known at a rate ends, and how many strangers a larger size needs; else None."""
    known = [one for one in sizes if one.threshold.rate == rate and one.threshold.similarity is not None]
    if not known or max(one.rows for one in known) >= rows:
        return None
    whole = max(one.rows for one in known if not one.is_extrapolated)
    needed = strangers_needed(rate, rows / whole)
    return (
        f"At 1 in {1 / rate:,.0f} nothing is said beyond {max(one.rows for one in known):,} embeddings: for "
        f"{rows:,} about {two_digits(needed)} strangers are needed."
    )


def limit(values: Sequence[tuple[int, float]], goal: float) -> Limit:
    """Return up to how many rows values (rows, share), by rising rows, are within a goal.

    It is the first crossing, on a line over the logarithm of the rows.
    """
    least, most = values[0][0], values[-1][0]
    if values[0][1] > goal:
        return Limit(None, False, least, most)
    for (rows, share), (more, next_share) in zip(values, values[1:], strict=False):
        if next_share > goal:
            part = (goal - share) / (next_share - share)
            return Limit(exp(log(rows) + part * (log(more) - log(rows))), True, least, most)
    return Limit(None, True, least, most)


def two_digits(rows: float) -> str:
    """Return a number of rows, the first two of its digits."""
    unit = 10 ** max(0, floor(log10(rows)) - 1)
    return f"{round(rows / unit) * unit:,}"


def _reason(of_rate: Sequence[AtSize]) -> str:
    reasons = [one.threshold.reason for one in of_rate if one.threshold.reason]
    if reasons:
        return reasons[-1]
    return (
        "no searches were made for people of whom there are several pictures" if of_rate else "not measured"
    )
