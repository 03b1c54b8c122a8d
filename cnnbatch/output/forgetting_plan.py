"""Takes what was forgotten out of the pages of a plan, and out of what later listings say of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.output.forgotten_rows import blanked_page
from cnnbatch.output.plan_pages import Listing, page_file
from cnnbatch.output.rewriting import Command, Touched

Places = Mapping[int, Mapping[int, str]]
"""The forgotten images of some shards: by shard and place the HMACs of their keys."""


def rewrite_page(
    command: Command, listing: Listing, page: int, places: Places, shards: Collection[int]
) -> list[Touched]:
    """Put what stands for forgotten images in their place in a page of the plan.

    These are the images at ``places``, and those of ``shards`` whose keys the command names.
    """

    def change(table: pa.Table) -> pa.Table | None:
        found = _found(command, table, _positions(table), places, shards)
        return blanked_page(table, found) if found else None

    return command.rewrite_table(listing.page(page), change, page_file)


def rewrite_changes(
    command: Command, listing: Listing, places: Places, shards: Collection[int] | None
) -> list[Touched]:
    """Leave forgotten images out of what a listing says of images planned before; see `rewrite_page`."""

    def change(table: pa.Table) -> pa.Table | None:
        found = _found(command, table, table["position"].to_numpy(), places, shards)
        if not found:
            return None
        kept = np.ones(table.num_rows, np.bool_)
        kept[[*found]] = False
        return table.filter(pa.array(kept))

    uris = listing.changes_pages()
    return [one for uri in uris for one in command.rewrite_table(uri, change, page_file)]


def _found(
    command: Command,
    table: pa.Table,
    positions: NDArray[Any],
    places: Places,
    shards: Collection[int] | None,
) -> dict[int, str]:
    """Return the rows of a table whose images are forgotten and that does not say so, with their HMACs."""
    forgetting, found = command.forgetting, {}
    columns: list[list[Any]] = [table[name].to_pylist() for name in ("shard", "key", "uri")]
    for row, (shard, key, uri, place) in enumerate(zip(*columns, positions.tolist(), strict=True)):
        if place in places.get(shard, ()) and uri:
            found[row] = places[shard][place]
        elif uri is not None and (shards is None or shard in shards) and forgetting.is_whole(key):
            found[row] = forgetting.forgotten.hmac(key)
    return found


def _positions(table: pa.Table) -> NDArray[np.int64]:
    """Return the place of each row of a page in its shard, (N,)."""
    shards = table["shard"].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], shards[1:] != shards[:-1]]))
    counts = np.diff([*starts, len(shards)])
    return np.arange(len(shards)) - np.repeat(starts, counts)
