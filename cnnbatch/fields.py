"""Reads a model's fields from ``key=value`` texts, and tells all mistakes in them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cnnbatch.errors import UserError
from cnnbatch.mistakes import Sentences
from cnnbatch.overrides import apply, overrides, read_value
from cnnbatch.schema import at
from cnnbatch.spec import Document

M = TypeVar("M", bound=BaseModel)


def read_fields(model: type[M], given: Mapping[str, Any], texts: Sequence[str], what: str) -> M:
    """Return a ``model`` of the ``given`` values and those of the texts, which win.

    Raises:
        UserError: every mistake, each with the expected, what came, and the nearest known name; it begins
            with ``what``.
    """
    schema = model.model_json_schema()
    changes, wrong = overrides(
        texts, {}, lambda keys, text: read_value(text, at(keys, schema, schema), schema)
    )
    data = {**apply({}, changes, {}), **given}
    found = None
    try:
        found = model.model_validate(data)
    except ValidationError as error:
        sentences = Sentences(Document("", {}, {}), changes, data, schema)
        wrong = [*sentences.all(error.errors(include_url=False)), *wrong]
    if found is None or wrong:
        count = "one mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        raise UserError("\n  ".join([f"{count} in {what}", *wrong]))
    return found
