"""What a training measures as TensorBoard reads it: an event file a piece, all of one folder.

``tensorboard --logdir OUT/tensorboard`` reads them from a disk or a bucket; a piece is never appended to,
since objects of a store can't be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnbatch.output import Output
from cnnbatch.training.position import Position

_FOLDER = "tensorboard"
_TIMES = ("epoch", "step")


def put_events(output: Output, first: Position, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the rows of the steps from ``first`` on as scalars over the step."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="cnnbatch-events-") as folder:
        writer = SummaryWriter(folder)
        for row in rows:
            for name, value in row.items():
                if name not in _TIMES:
                    writer.add_scalar(name, value, int(row["step"]))
        writer.close()
        (file,) = Path(folder).iterdir()
        output.storage.put(output.path(_FOLDER, _name(first)), file.read_bytes())


def drop_events(output: Output, since: Position) -> None:
    """Remove what was measured from ``since`` on."""
    for name in [*output.names(_FOLDER)]:
        if name >= _name(since):
            output.storage.delete(output.path(_FOLDER, name))


def _name(first: Position) -> str:
    return f"events.out.tfevents.{first.name}"
