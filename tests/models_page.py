"""Writes the tables of docs/models.md: what the classifiers of torchvision and Keras are called in a job.

``python -m tests.models_page`` writes them anew and leaves the text around them; a test says when it has to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cnnbatch.cli.models import listing
from cnnbatch.models.published import PublishedModel
from tests.places import CHECKOUT

PAGE = CHECKOUT / "docs" / "models.md"

_NASNET_MOBILE = (
    "| NASNetMobile | `timm/nasnetalarge` instead: Keras refuses NASNetMobile on its torch backend, "
    "where it [predicted wrongly](https://github.com/keras-team/keras/issues/18451) | | | | |"
)


def page() -> str:
    """Return the page as it has to be."""
    text = PAGE.read_text(encoding="utf-8")
    for title, rows in tables().items():
        lines = [
            f"| {title} | task.model | parameters | input | top-1 | top-5 |",
            "|---|---|--:|--:|--:|--:|",
        ]
        table = "".join(f"{line}\n" for line in [*lines, *rows])
        text, count = re.subn(rf"^\| {title} \|.*\n(\|.*\n)*", table, text, flags=re.MULTILINE)
        assert count == 1, f"expected one table of {title} in {PAGE}"
    return text


def tables() -> dict[str, list[str]]:
    """Return the rows by the heading of their first column."""
    listed = listing(task="classify")
    keras = list(_rows(listed, "keras"))
    keras.insert(next(n for n, row in enumerate(keras) if row.startswith("| NASNetLarge")), _NASNET_MOBILE)
    return {"Keras": keras, "torchvision": list(_rows(listed, "torchvision"))}


def _rows(listed: Sequence[PublishedModel], library: str) -> Iterator[str]:
    for row in listed:
        if row.library == library:
            yield f"| {' | '.join(_cells(row))} |"


def _cells(row: PublishedModel) -> Iterator[str]:
    yield row.name.rpartition("/")[2]
    yield f"`{row.name}`"
    yield f"{row.parameters / 1e6:.1f}" if row.parameters else ""
    yield "{} x {}".format(*row.input_size) if row.input_size else ""
    for metric in ("top1", "top5"):
        yield f"{row.accuracy[metric]:.1f}" if metric in row.accuracy else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
