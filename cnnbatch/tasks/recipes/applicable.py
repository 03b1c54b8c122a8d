"""Which fields of ``train`` a job asks something by, so that a recipe refuses those that it can't follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from cnnbatch.config.train import Train

OF_MAPS = ("loss", "augment.crop_size", "augment.scale", "augment.aspect")
"""What only networks that give a class to every pixel learn by."""
OF_EMBEDDINGS = ("embedding",)
"""What only networks that give a vector to a picture learn by."""
_NOTHING: Mapping[str, Any] = {"augment.crop": 1.0, "label_smoothing": 0.0}  # Where that is not the default.


def asked(spec: Train, fields: Iterable[str]) -> list[str]:
    """Return those of the ``fields``, paths below ``train``, that the job has changed to ask for more.

    They are written as a job writes them. A default for classifiers asks for nothing.
    """
    return [f"train.{field}" for field in fields if _asks(spec, field)]


def _asks(spec: Train, field: str) -> bool:
    value, default = (reduce(getattr, field.split("."), of) for of in (spec, Train()))
    return bool(value not in (default, _NOTHING.get(field, default)))
