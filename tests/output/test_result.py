"""Reading an output back: tables, streams, failures, single pictures; over local folders and memory."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.results import Result
from cnnbatch.storage import Storage
from tests.outputs import bad, good, write_job, write_output, write_part

PARTS = [
    [good("a.jpg", "/gone/a.jpg", [("cat", 0.9), ("dog", 0.05)]), bad("b.jpg", "truncated", "ends early")],
    [good("c.jpg", "/gone/c.jpg", [("dog", 0.6)]), good("d.jpg", "/gone/d.jpg", [("cat", 0.3)])],
    [bad("e.jpg", "not_found", "nothing there", "read")],
]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return write_output(tmp_path / "out", PARTS)


def test_open_reads_every_row_in_order(output: Path) -> None:
    result = cnnbatch.open(output)
    assert len(result) == 5
    assert result.arrow()["key"].to_pylist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    whole = pa.concat_tables(pq.ParquetFile(part).read() for part in sorted(output.glob("predictions/*")))
    assert result.arrow().equals(whole.replace_schema_metadata(None))


def test_columns_are_given_in_the_order_asked(output: Path) -> None:
    table = cnnbatch.open(output).arrow(["score", "key"])
    assert table.column_names == ["score", "key"]
    assert table["key"].to_pylist()[0] == "a.jpg"


def test_an_unknown_column_names_the_nearest(output: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'label'"):
        cnnbatch.open(output).arrow(["labels"])


def test_batches_stream_and_hold_what_the_table_holds(output: Path) -> None:
    result = cnnbatch.open(output)
    assert pa.Table.from_batches(result.batches(), schema=result.schema).equals(result.arrow())
    assert [batch.num_rows for batch in result.batches(["key"], part=1)] == [2]


def test_pandas(output: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is optional")
    frame = cnnbatch.open(output).pandas(["key", "label"])
    assert list(frame["label"].fillna("")) == ["cat", "", "dog", "cat", ""]


def test_failed_has_whole_rows_and_opens_only_parts_with_failures(output: Path) -> None:
    result = cnnbatch.open(output)
    assert result.receipts()[1].rows == 2
    (output / "predictions" / "part-00000001.parquet").unlink()
    failed = result.failed()
    assert failed["key"].to_pylist() == ["b.jpg", "e.jpg"]
    assert pc.struct_field(failed["error"], "code").to_pylist() == ["truncated", "not_found"]
    assert failed.schema == result.schema
    assert result.failed(["key"]).column_names == ["key"]
    assert result.failures() == {"truncated": 1, "not_found": 1}


def test_receipts_are_the_footers(output: Path) -> None:
    footers = cnnbatch.open(output).receipts()
    assert [footer.receipt.shard for footer in footers] == [0, 1, 2]
    assert footers[0].receipt.failed == {"truncated": 1}
    assert footers[0].info["precision"] == "fp32"
    assert footers[0].keys == ("a.jpg", "b.jpg")
    begun, ended = footers[0].started, footers[0].finished
    assert begun is not None
    assert ended is not None
    assert (ended - begun).total_seconds() == 2.0


def test_a_part_without_footer_is_read_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "predictions"
    folder.mkdir(parents=True)
    rows = pa.table(
        {
            "key": ["a", "b"],
            "uri": ["a", "b"],
            "error": pa.array([None, None], pa.struct([("code", pa.string())])),
        }
    )
    pq.write_table(rows, folder / "part-00000000.parquet")
    (folder / "part-00000001.parquet.tmp").write_bytes(b"not a part")
    result = cnnbatch.open(tmp_path / "out")
    assert len(result) == 2
    assert result.failed().num_rows == 0
    assert result.settings == {}
    assert "2 images" in repr(result)


def test_settings_are_the_job(output: Path) -> None:
    assert cnnbatch.open(output).settings["task"]["name"] == "classify"


def test_no_output_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predictions/part-\*\.parquet"):
        cnnbatch.open(tmp_path / "nothing")


def test_an_output_before_its_first_part(tmp_path: Path) -> None:
    write_job(tmp_path / "out")
    result = cnnbatch.open(tmp_path / "out")
    assert len(result) == 0
    assert "0 images" in result._repr_html_()
    with pytest.raises(UserError, match="first part"):
        result.arrow()


def test_row_finds_a_key_in_a_later_row_group(tmp_path: Path) -> None:
    rows = [good(f"{number:06}.jpg", "/gone", [("cat", 0.5)]) for number in range(2500)]
    out = write_output(tmp_path / "out", [rows[:1200], rows[1200:]])
    result = cnnbatch.open(out)
    assert result.row("002499.jpg")["key"] == "002499.jpg"
    taken = result.take(1, [1299, 0, 1001], ["key"])
    assert [row["key"] for row in taken] == ["002499.jpg", "001200.jpg", "002201.jpg"]
    with pytest.raises(UserError, match="no image with the key"):
        result.row("missing.jpg")


def test_show_is_upright_captioned_and_saves(tmp_path: Path) -> None:
    original = Image.new("RGB", (200, 100), "red")
    original.paste("blue", (0, 0, 100, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: blue on top
    original.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    out = write_output(tmp_path / "out", [[good("turned.jpg", tmp_path / "turned.jpg", [("flag", 0.75)])]])
    picture = cnnbatch.open(out).show("turned.jpg")
    assert picture.image is not None
    assert picture.image.size == (100, 200)
    red, _, blue = picture.image.getpixel((50, 20))
    assert blue > 200 > 50 > red
    assert picture.prediction.caption == "flag, 75 %"
    with Image.open(io.BytesIO(picture._repr_png_())) as shown:
        assert shown.height > 200
    picture.save(tmp_path / "shown.png")
    assert (tmp_path / "shown.png").stat().st_size > 0


def test_show_of_a_failed_or_vanished_image_is_a_placeholder(output: Path) -> None:
    result = cnnbatch.open(output)
    assert result.show("c.jpg").reason == "no longer where it was"
    assert result.show("b.jpg").prediction.caption == "truncated: ends early"
    assert result.show("b.jpg")._repr_png_().startswith(b"\x89PNG")


def test_notebook_shows_counts_and_pictures_and_escapes(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "green").save(tmp_path / "a.png")
    rows = [
        good("<script>alert(1)</script>", tmp_path / "a.png", [("<b>bold</b>", 0.5)]),
        bad("x", "empty", ""),
    ]
    html = cnnbatch.open(write_output(tmp_path / "out", [rows]))._repr_html_()
    assert "2 images · 1 failed (empty 1)" in html
    assert html.count("data:image/jpeg") == 1
    assert "<script" not in html
    assert "<b>" not in html


def test_any_url(output: Path) -> None:
    storage = Storage()
    for file in output.rglob("*.*"):
        storage.put(f"memory://bucket/{output.name}/{file.relative_to(output).as_posix()}", file.read_bytes())
    result = Result(f"memory://bucket/{output.name}", storage)
    assert result.arrow().equals(cnnbatch.open(output).arrow())


def test_reading_imports_no_torch_and_no_ray(output: Path) -> None:
    code = (
        "import json, sys, cnnbatch\n"
        "light = [name for name in ('pyarrow', 'yaml', 'torch', 'ray') if name in sys.modules]\n"
        "result = cnnbatch.open(sys.argv[1]); result.arrow(); result._repr_html_()\n"
        "from cnnbatch.report import write_report; from cnnbatch.storage import Storage\n"
        "write_report(sys.argv[1], Storage())\n"
        "print(json.dumps([light, [name for name in ('torch', 'ray') if name in sys.modules]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[], []]


def test_run_takes_overrides_as_names_and_as_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def load_job(job: str, overrides: dict[str, Any]) -> str:
        given.update(overrides)
        return job

    monkeypatch.setattr("cnnbatch.job.load_job", load_job)
    module = importlib.import_module("cnnbatch.launch")
    monkeypatch.setattr(module, "launch", lambda job, options: (job, options.retry_failed))
    called: Any = cnnbatch.run(
        "classify",
        retry_failed=True,
        input={"url": "photos", "limit": 10},
        output="out",
        task__top_k=3,
        compute__workers={"min": 1, "max": 2},
    )
    assert called == ("classify", True)
    assert given == {
        "input.url": "photos",
        "input.limit": 10,
        "output": "out",
        "task.top_k": 3,
        "compute.workers": {"min": 1, "max": 2},
    }


def test_version_is_the_distribution_s() -> None:
    assert importlib.metadata.version("cnnbatch") == cnnbatch.__version__


def test_parts_of_unlike_speed_keep_the_plan_s_order(tmp_path: Path) -> None:
    for index in (10, 2, 0):
        write_part(tmp_path / "out", index, [good(f"{index}", "/gone", [("cat", 0.5)])])
    assert cnnbatch.open(tmp_path / "out").arrow(["key"])["key"].to_pylist() == ["0", "2", "10"]
