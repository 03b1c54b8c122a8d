"""Nothing in a folder is dropped in silence: it is an image, a companion of one, or counted and said."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.images import formats as picture_formats
from cnnbatch.images.formats import FORMATS, PILLOW, RAW_SUFFIXES, SUFFIXES
from cnnbatch.images.limits import REVISION
from cnnbatch.inference.driver.planner import Planner
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import fingerprint_fields
from cnnbatch.output.folder import Output
from cnnbatch.output.plan_pages import left_out_of, listings_of
from cnnbatch.report.collection import facts
from cnnbatch.sources import describe, open_source
from cnnbatch.sources.files import companions
from cnnbatch.sources.files.left_out import COMPANIONS, count, in_words, kind_of, left_out_by
from cnnbatch.storage import Storage
from tests.conftest import jpeg
from tests.inference.test_run import job, table
from tests.jobs import parse_job


def folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(1) if name.lower().endswith(("jpg", "jpeg")) else b"x")
    return root


def listed(url: str | list[str], **fields: Any) -> tuple[list[str], dict[str, int]]:
    source = open_source(Input.model_validate({"url": url, **fields}), Storage())
    keys = [ref.key for ref in source.refs()]
    return keys, dict(left_out_by(source))


def by_definition(names: list[str]) -> list[str]:
    """A raw file is an image unless its folder has a JPEG of its stem; in the order of the bytes."""
    stems = {
        name.rpartition(".")[0]
        for name in names
        if Path(name).suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
    }
    return sorted(
        name
        for name in names
        if Path(name).suffix.lower() not in RAW_SUFFIXES or name.rpartition(".")[0] not in stems
    )


def test_what_a_phone_and_a_camera_leave_in_a_folder(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "b.HEIC",
        "c.heif",
        "d.jp2",
        "e.jxl",
        "f.dng",
        "g.psd",
        "h.ico",
        "notes.txt",
        "README",
        ".hidden",
    ]
    keys, left_out = listed(str(folder(tmp_path, *names)))
    assert keys == names[:8]
    assert left_out == {".txt": 1, "without suffix": 1, "hidden": 1}


def test_every_decoder_and_every_suffix_is_in_one_list() -> None:
    """Pillow's own list of what it opens names the suffixes of each format that it decodes here."""
    Image.init()
    for format in FORMATS:
        if format.decoder == PILLOW:
            of_pillow = {suffix for suffix, name in Image.EXTENSION.items() if name in (format.name, "MPO")}
            assert of_pillow & set(format.suffixes), format
            assert format.name in Image.OPEN
    assert {".jpg", ".heic", ".jp2", ".ico", ".cr2", ".exr", ".pfm"} <= SUFFIXES


NAMES = (
    *("a.cr2", "a.CR2", "a.jpg", "a.JPG", "a.jpeg", "a.nef", "a.gif", "a.txt", "a", "a-1.cr2", "b.arw"),
    *("a.d/b.dng", "a.d/b.jpg", "a.d/c.cr2", "a.k/z.png", "a.b.cr2", "a.b.jpg", "z/a.dng"),
)


@pytest.mark.parametrize("waiting", [1, 2, 1000])
def test_companions_need_not_be_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Whatever lies between the two, however little may wait, and wherever the listing goes on."""
    monkeypatch.setattr(companions, "MOST_WAITING", waiting)
    for number, chosen in enumerate(itertools.combinations(NAMES, 5)):
        if number % 41:
            continue
        names = [name for name in chosen if not any(other.startswith(name + "/") for other in chosen)]
        root = folder(tmp_path / str(number), "z.jpg", *names)
        expected = by_definition(
            [name for name in ("z.jpg", *names) if Path(name).suffix.lower() in SUFFIXES]
        )
        source = open_source(Input(url=str(root)), Storage())
        refs = list(source.refs())
        assert [ref.key for ref in refs] == expected
        images = sum(Path(name).suffix.lower() in SUFFIXES for name in names)
        assert left_out_by(source)[COMPANIONS] == images + 1 - len(refs)
        for place, ref in enumerate(refs):
            assert [later.key for later in source.refs(ref)] == expected[place + 1 :], ref.key


def test_who_names_raw_files_gets_them(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.jpg", "a.dng", "a.JPE", "b.xyz")
    assert listed(str(root)) == (["a.JPE", "a.jpg"], {COMPANIONS: 1, ".xyz": 1})
    assert listed(f"{root}/*.dng") == (["a.dng"], {})
    assert listed(str(root), suffixes=["dng", ".JPG"]) == (["a.dng", "a.jpg"], {".jpe": 1, ".xyz": 1})
    assert listed(str(root), suffixes=["xyz"])[0] == ["b.xyz"]
    assert listed([str(root), f"{root}/*.xyz"])[1] == {COMPANIONS: 1, ".xyz": 1}
    with pytest.raises(UserError, match="found 2 .jpe"):
        listed(str(folder(tmp_path / "other", "a.jpe", "b.jpe")), suffixes=["png"])


def test_suffixes_mean_nothing_to_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"input\.suffixes: .* is read as list"):
        listed(str(tmp_path / "list.txt"), suffixes=["jpg"])


def test_kinds_are_bounded() -> None:
    names = (f"x.s{number}" for number in range(10_000))
    counts = Counter[str]()
    for name in names:
        count(counts, kind_of(name))
    assert len(counts) == 101
    assert counts.total() == 10_000
    assert in_words(counts).endswith(" more")


def test_describe_says_it(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.jpg", "a.cr2", "b.txt", "c.txt", ".DS_Store")
    source = open_source(Input(url=str(root)), Storage())
    found = describe.describe(source)
    (fact,) = [fact for fact in facts(found) if fact.name == "Left out"]
    assert found.failed == {}
    assert (fact.value, fact.note) == ("4", f"no images: 2 .txt, 1 hidden, 1 {COMPANIONS}")


def planned(root: Path, out: Path, shard_size: int | str = 1) -> tuple[Output, Planner]:
    output = Output(str(out), Storage())
    chosen = Input.model_validate({"url": str(root), "shard_size": shard_size})
    planner = Planner(output, open_source(chosen, Storage()), chosen, 1000)
    return output, planner


def stopping(planner: Planner, pages: int) -> Callable[..., None]:
    """Write pages, and have the listing stop behind so many."""
    write, written = planner._write, itertools.count(1)

    def write_and_stop(*args: Any) -> None:
        write(*args)
        planner._stopped = next(written) == pages

    return write_and_stop


def test_a_listing_that_goes_on_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind any page: the whole has the counts of one that was not stopped."""
    names = [f"{number}{suffix}" for number in range(9) for suffix in (".jpg", ".json", ".nef", ".txt")]
    root = folder(tmp_path / "in", *names)
    whole = {".json": 9, ".txt": 9, COMPANIONS: 9}
    for stop in range(1, 4):
        out = tmp_path / f"out{stop}"
        output, planner = planned(root, out)
        monkeypatch.setattr(planner, "_write", stopping(planner, stop))
        planner.start()
        planner._thread.join()
        assert listings_of(output)[0].complete() is None
        output, planner = planned(root, out)
        planner.start()
        planner._thread.join()
        assert left_out_of(output) == whole
        last = pq.read_schema(max(out.glob("_job/plan/*/0*.parquet"))).metadata
        assert json.loads(last[b"left_out"])[".json"] >= 8


def test_a_page_counts_no_further_than_its_last_image(tmp_path: Path) -> None:
    """Also where the listing is ahead of it, to see whether it ends there."""
    names = [f"{number:03}{suffix}" for number in range(300) for suffix in (".jpg", ".txt")]
    _, planner = planned(folder(tmp_path / "in", *names), tmp_path / "out", "auto")
    planner.start()
    planner._thread.join()
    images, pages = 0, sorted((tmp_path / "out").glob("_job/plan/*/0*.parquet"))
    for page in pages:
        images += pq.read_metadata(page).num_rows
        assert json.loads(pq.read_schema(page).metadata[b"left_out"]) == {".txt": images - 1}
    assert (images, len(pages)) == (300, 4)


def test_a_run_and_its_report_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "in", "a.jpg", "a.dng", "b.dng", "c.jxl", "d.txt")
    summary = run(job(root, tmp_path / "out"), RunOptions())
    assert (summary.images, summary.failed) == (3, {"undecodable": 2})
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "left out, since they are no images: 1 .txt, 1 raw beside a JPEG of its name" in said
    rows = table(tmp_path / "out").to_pylist()
    assert [row["key"] for row in rows] == ["a.jpg", "b.dng", "c.jxl"]
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "undecodable", "undecodable"]
    assert rows[1]["error"]["message"].startswith("DNG: there is no decoder for it here")
    assert rows[2]["error"]["message"].startswith("JPEG XL: there is no decoder for it here")
    assert "no images: 1 .txt, 1 raw beside" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_suffixes_leave_old_fingerprints_alone() -> None:
    text = "task: {name: tests.toy:Toy}\ninput: {url: a}\noutput: {url: b}\n"
    assert "suffixes" not in fingerprint_fields(parse_job(text, "job"))["input"]
    named = fingerprint_fields(parse_job(text, "job", ["input.suffixes=[JPG]"]))["input"]
    assert list(named["suffixes"]) == [".jpg"]


def test_an_older_decoders_unfinished_output_is_refused(tmp_path: Path) -> None:
    """With that reason; a finished one is as it was, and a part of it is never mixed with other pixels."""
    root, out = folder(tmp_path / "in", *(f"{number}.jpg" for number in range(12))), tmp_path / "out"
    run(job(root, out), RunOptions(quiet=True))
    path = out / "_job" / "identity.json"
    identity = json.loads(path.read_text(encoding="utf-8"))
    assert identity.pop("decoder_revision") == REVISION == 2
    path.write_text(json.dumps(identity), encoding="utf-8")
    assert run(job(root, out), RunOptions(quiet=True)).images == 0
    (out / "predictions" / "part-00000001.parquet").unlink()
    with pytest.raises(UserError, match="the decoder's revision: the output has 1, this job has 2"):
        run(job(root, out), RunOptions(quiet=True))
    assert table(out).num_rows == 10


def test_describe_says_who_would_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(Input(url=str(folder(tmp_path, "a.heic", "b.dng", "c.png"))), Storage())
    monkeypatch.setattr(picture_formats, "has_extra", lambda name: False)
    examples = dict(describe.describe(source).failed["undecodable"].examples)
    assert examples["a.heic"].startswith(
        "HEIF: install the optional extra that decodes it, pip install 'cnnbatch[heif]'"
    )
    assert examples["b.dng"].startswith("DNG: there is no decoder for it here")
    assert examples["c.png"].startswith("expected one of")
