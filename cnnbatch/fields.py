"""Reads a model's fields from ``key=value`` texts, and tells all mistakes in them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cnnbatch import spec
from cnnbatch.errors import UserError
from cnnbatch.mistakes import Sentences

M = TypeVar("M", bound=BaseModel)


def read_fields(model: type[M], given: Mapping[str, Any], texts: Sequence[str], what: str) -> M:
    """Return a ``model`` of the ``given`` values and those of the texts, which win.

    Raises:
        UserError: every mistake, each with the expected, what came, and the nearest known name; it begins
            with ``what``.
    """
    changes, wrong = spec.overrides(texts, {})
    data = {**spec.apply({}, changes, {}), **given}
    found = None
    try:
        found = model.model_validate(data)
    except ValidationError as error:
        sentences = Sentences(spec.Document("", {}, {}), changes, data, model.model_json_schema())
        wrong = [*sentences.all(error.errors(include_url=False)), *wrong]
    if found is None or wrong:
        count = "one mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        raise UserError("\n  ".join([f"{count} in {what}", *wrong]))
    return found
