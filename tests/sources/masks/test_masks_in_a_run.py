"""Masks in a whole run: written beside the predictions by each shard, and read back a few at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from cnnbatch.images import class_map
from cnnbatch.inference.run import run
from cnnbatch.output.truth_file import truth_file
from cnnbatch.truth import MAP_SCHEMA, Class, classes_of, ignored_of, table
from tests.conftest import jpeg
from tests.inference.test_run import QUIET, job

NUMBERS = np.repeat(np.array([[0, 1]], np.uint8), 32, axis=1).repeat(48, axis=0)


def test_each_shard_s_masks_lie_beside_its_rows(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(25):
        (tmp_path / "images" / f"{number:02}.jpg").write_bytes(jpeg(number))
        shape = NUMBERS[:40] if number == 17 else NUMBERS
        if number != 3:
            Image.fromarray(shape).save(tmp_path / "masks" / f"{number:02}.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    how = {"truth": str(tmp_path / "masks"), "relabel": {"road": "street"}}
    run(job(tmp_path / "images", tmp_path / "out", input=how), QUIET)
    parts = sorted((tmp_path / "out/_job/truth").iterdir())
    assert len(parts) == 3
    read = [pq.read_table(part) for part in parts]
    rows = [row for part in read for row in part.to_pylist()]
    for number, row in enumerate(rows):
        if number in (3, 17):
            assert row["map"] is None
        else:
            assert np.array_equal(class_map.from_png(row["map"]), NUMBERS)
    assert rows[3]["problem"] is None
    assert rows[17]["problem"] == "made for 64 x 40 pixels, the image has 64 x 48; its map is left out"
    for part in read:
        assert classes_of(part.schema) == (Class("sky", 0), Class("street", 1))
        assert ignored_of(part.schema) == {255}


def test_maps_lie_in_small_groups_of_rows(tmp_path: Path) -> None:
    rows = table([{"image_id": str(number), "map": b"png" * number} for number in range(150)], MAP_SCHEMA)
    (tmp_path / "a.parquet").write_bytes(truth_file(rows))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read().equals(rows)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [64, 64, 22]
    place = file.schema_arrow.get_field_index("map")
    assert {group.column(place).compression for group in groups} == {"UNCOMPRESSED"}
