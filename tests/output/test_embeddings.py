"""What a field of embeddings says of itself, through Parquet, alone and in objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output.embeddings import EmbeddingSpace, space_of
from cnnbatch.output.part import ENGINE_COLUMNS, PartSpool

SPACE = EmbeddingSpace("dlib_resnet", "0123", 3, "none", "euclidean")


def test_a_part_says_where_its_embeddings_lie(tmp_path: Path) -> None:
    objects = pa.field("objects", pa.list_(pa.struct([pa.field("label", pa.string()), SPACE.field()])))
    rows = [{"embedding": [1.0, 2.0, 3.0], "objects": [{"label": "face", "embedding": [4.0, 5.0, 6.0]}]}]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([SPACE.field(), objects])), tmp_path / "part.parquet")
    schema = pq.read_schema(tmp_path / "part.parquet")
    assert space_of(schema.field("embedding")) == SPACE
    inner: Any = schema.field("objects").type
    assert space_of(inner.value_type.field("embedding")) == SPACE
    assert inner.value_type.field("embedding").type == pa.list_(pa.float32(), 3)


def test_mirrored_embeddings_are_of_another_space() -> None:
    mirrored = replace(SPACE, mirror=True)
    assert space_of(mirrored.field()) == mirrored != SPACE
    kept = SPACE.field().metadata or {}
    assert b"mirror" not in kept[b"embedding"]  # As it was before there was this field.


def test_other_fields_say_nothing() -> None:
    assert space_of(pa.field("embedding", pa.list_(pa.float32()))) is None
    assert space_of(pa.field("embedding", pa.list_(pa.float32()), metadata={"about": "it"})) is None


def test_embeddings_are_written_plainly_and_all_else_is_compressed(tmp_path: Path) -> None:
    of_face = replace(SPACE, dimensions=4).field()
    face = pa.struct([("score", pa.float32()), of_face])
    schema = pa.schema([*ENGINE_COLUMNS, of_face, pa.field("objects", pa.list_(face))])
    rows = [{"key": "a", "uri": "u", "vanished": False, "embedding": [1.0, 2, 3, 4], "objects": []}] * 50
    with PartSpool(schema) as spool:
        spool.write(pa.RecordBatch.from_pylist(rows, schema=schema))
        data = spool.finish({}).read_bytes()
    assert pq.read_table(pa.BufferReader(data)).to_pylist()[0].items() >= rows[0].items()
    group = pq.read_metadata(pa.BufferReader(data)).row_group(0)
    columns = {one.path_in_schema: one for one in map(group.column, range(group.num_columns))}
    plain = {name for name, one in columns.items() if one.compression == "UNCOMPRESSED"}
    assert plain == {"embedding.list.element", "objects.list.element.embedding.list.element"}
    assert not any(columns[name].has_dictionary_page or columns[name].statistics for name in plain)
    assert columns["key"].has_dictionary_page
    assert columns["objects.list.element.score"].compression == "ZSTD"
