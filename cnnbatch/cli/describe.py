"""``cnnbatch describe``: which input it reads."""

from __future__ import annotations

from collections.abc import Sequence

from cnnbatch.config.input import Input
from cnnbatch.config.mistakes import read_fields


def read_input(url: str, fields: Sequence[str], limit: int | None = None) -> Input:
    """Return a job's ``input`` section from an address and ``key=value`` texts for its fields.

    Raises:
        UserError: every mistake in them, each with the expected, what came, and the nearest known name.
    """
    given = {"url": url} | ({} if limit is None else {"limit": limit})
    texts = [text.removeprefix("input.") for text in fields]
    return read_fields(Input, given, texts, "the fields of the input; nothing was read")
