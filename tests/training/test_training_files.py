"""Pictures that are kept, refs that are drawn by number, checkpoints and metrics on any storage."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.images.decode import decode
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.training.checkpoints import Checkpoints
from cnnbatch.training.data.decoded_cache import Pictures
from cnnbatch.training.data.sample_table import Refs, listed
from cnnbatch.training.log import drop_events, drop_pieces, put_events, put_metrics, put_piece
from cnnbatch.training.messages import Position
from tests import tiny
from tests.conftest import jpeg


def parquet_of(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(2):
        rows = range(number * count // 2, (number + 1) * count // 2)
        table = pa.table({"image": [jpeg(row) for row in rows], "label": ["ab"[row % 2] for row in rows]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=7)
    return folder


def content(reader: Callable[[], Any]) -> torch.Tensor:
    data = reader()
    pixels: torch.Tensor = (decode(data) if isinstance(data, bytes) else data.decode(lambda size: None))[0]
    return pixels


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_a_kept_picture_is_the_one_that_was_read(tmp_path: Path, kind: str) -> None:
    made = {
        "files": lambda: tiny.colours(tmp_path / "set", 8),
        "parquet": lambda: parquet_of(tmp_path / "set", 24),
    }
    format = {"files": "folders", "parquet": "parquet"}[kind]
    source = open_source(
        Input.model_validate(
            {"url": str(made[kind]()), "format": format, **({"label": "label"} if kind == "parquet" else {})}
        ),
        Storage(),
    )
    refs = listed(source, source.refs()).refs
    places = np.random.default_rng(0).permutation(24)
    shard = refs.shard(places)
    plain = [content(reader) for reader in source.read(shard)] if kind == "files" else None
    pictures = Pictures(source, 10**9)
    first = [content(reader) for reader in pictures.read(shard)]
    for ref, pixels in zip(shard.refs[::2], first[::2], strict=True):
        pictures.keep(ref.key, pixels, (pixels.shape[1], pixels.shape[2]))
    again = [content(reader) for reader in pictures.read(shard)]
    by_key = {}
    for place, ref in enumerate(refs.shard(range(24)).refs):
        (by_key[ref.key],) = [content(reader) for reader in source.read(refs.shard([place]))]
    for ref, one, other in zip(shard.refs, first, again, strict=True):
        assert torch.equal(one, by_key[ref.key])
        assert torch.equal(other, by_key[ref.key])
    assert plain is None or all(torch.equal(one, other) for one, other in zip(plain, first, strict=True))


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path) -> None:
    source = open_source(
        Input.model_validate({"url": str(tiny.colours(tmp_path, 2)), "format": "folders"}), Storage()
    )
    pictures = Pictures(source, 100)
    pictures.keep("large", torch.zeros(3, 10, 10, dtype=torch.uint8), (10, 10))
    pictures.keep("small", torch.zeros(3, 5, 5, dtype=torch.uint8), (5, 5))
    pictures.keep("next", torch.zeros(3, 5, 5, dtype=torch.uint8), (5, 5))
    assert [*pictures._kept] == ["small"]


def test_refs_are_the_listing_and_come_back_from_their_file(tmp_path: Path) -> None:
    source = open_source(
        Input.model_validate({"url": str(parquet_of(tmp_path / "set", 600)), "label": "label"}), Storage()
    )
    refs = Refs.from_bytes(listed(source, source.refs()).refs.to_bytes())
    assert refs.counts() == {"a": 300, "b": 300}
    assert [ref.key for ref in refs.shard([5, 3]).refs] == ["0.parquet#5", "0.parquet#3"]
    assert refs.runs is not None
    files = [ref.uri for ref in refs.shard(range(600)).refs]
    for run in np.unique(refs.runs):
        inside = np.flatnonzero(refs.runs == run)
        assert len({files[place] for place in inside}) == 1
        assert len(inside) <= 256
    of_files = open_source(
        Input.model_validate({"url": str(tiny.colours(tmp_path / "c", 3)), "format": "folders"}), Storage()
    )
    assert listed(of_files, of_files.refs()).refs.runs is None


@pytest.mark.parametrize("where", ["folder", "memory://checkpoints/out"])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, where: str) -> None:
    output = Output(str(tmp_path / "out") if where == "folder" else where, Storage())
    checkpoints = Checkpoints(output)
    assert checkpoints.newest() is None
    assert checkpoints.best() is None
    for step, position in enumerate([Position(0, 4), Position(0, 12), Position(1), Position(2)]):
        checkpoints.put(position, {"module": {"w": torch.tensor([step])}, "history": {"best": 0.5}})
    checkpoints.put_best({"learned": {"w": torch.ones(2)}})
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == Position(2)
    assert found[1]["module"]["w"].tolist() == [3]
    assert len([name for name in output.names("_job/training/checkpoints")]) == 2
    best = checkpoints.best()
    assert best is not None
    assert best["learned"]["w"].tolist() == [1, 1]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    output = Output(str(tmp_path), Storage())
    Checkpoints(output).put(Position(1), {"module": {}})
    (file,) = (tmp_path / "_job" / "training" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"000001-000000000\.pt cannot be read"):
        Checkpoints(output).newest()


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("code ran",)

    output, sink = Output(str(tmp_path), Storage()), io.BytesIO()
    torch.save({"module": Evil()}, sink)
    output.storage.put(output.path("_job", "training", "checkpoints", "000001-000000000.pt"), sink.getvalue())
    with pytest.raises(UserError, match="cannot be read"):
        Checkpoints(output).newest()


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    output = Output(str(tmp_path), Storage())
    put_events(
        output, Position(0, 0), [{"step": 0, "epoch": 0, "loss": 2.0}, {"step": 1, "epoch": 0, "loss": 1.5}]
    )
    put_events(output, Position(1, 0), [{"step": 2, "epoch": 1, "loss": 9.0}])
    drop_events(output, Position(1, 0))
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # TFRecord: the length, its checksum, the record, its checksum.
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = [(one.step, value.tag, value.simple_value) for one in found for value in one.summary.value]
    assert scalars == [(0, "loss", 2.0), (1, "loss", 1.5)]


def test_metrics_after_the_position_are_dropped(tmp_path: Path) -> None:
    output = Output(str(tmp_path), Storage())
    put_piece(output, Position(0, 0), [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.5, "accuracy": 0.5}])
    put_piece(output, Position(1, 0), [{"step": 2, "loss": 1.0}])
    put_piece(output, Position(1, 1), [{"step": 3, "loss": 9.0}])
    drop_pieces(output, Position(1, 1))
    put_metrics(output)
    rows = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
    assert rows == [
        {"step": 0, "loss": 2.0, "accuracy": None},
        {"step": 1, "loss": 1.5, "accuracy": 0.5},
        {"step": 2, "loss": 1.0, "accuracy": None},
    ]
