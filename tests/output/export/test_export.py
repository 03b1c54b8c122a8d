"""What other tools read of our predictions: each format by its own reader, hostile names, and what failed."""

from __future__ import annotations

import csv
import errno
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.output.export import FORMATS, ExportOptions, ExportSummary, export
from cnnbatch.output.export.coco_ids import category_ids
from cnnbatch.output.export.places import Tree, path_of, spool
from cnnbatch.output.export.polygons import outline
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.storage import Storage
from cnnbatch.truth import BOX, KEYPOINT, MASK, OBJECTS_SCHEMA, Class, with_classes
from cnnbatch.truth import table as truth_table
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Shard
from tests.outputs import bad, good, write_job, write_output, write_part
from tests.servers import Bucket
from tests.sourcing import source

pytest_plugins = ("tests.s3",)

OF_BOXES = [name for name in FORMATS if name not in ("panoptic", "pictures", "chips")]
"""The formats of plain boxes that need nothing else; test_export_maps has the others."""

_FIELDS: list[Any] = [("label", pa.string()), ("score", pa.float32()), ("box", BOX)]
MODEL = ModelClasses(("__background__", "person", "N/A", "traffic light", "N/A"), (0, 1, 2, 10, 12))
JOB = "task: {name: detect, model: it, aliases: {%s}}\ninput: {url: photos, format: auto, truth: %s}\n"


def schema(*more: tuple[str, Any], kept: Sequence[tuple[str, Any]] = ()) -> pa.Schema:
    objects = pa.list_(pa.struct([*_FIELDS, *more]))
    return pa.schema([*ENGINE_COLUMNS, *kept, ("objects", objects)])


BOXES = schema()
MASKS = schema(("mask", MASK))
POSES = schema(("keypoints", pa.list_(KEYPOINT)))


def thing(label: str | None, score: float, *box: float, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "score": score,
        "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
        **more,
    }


def seen(
    key: str, *objects: dict[str, Any], size: tuple[int, int] = (640, 480), **more: Any
) -> dict[str, Any]:
    known = {"uri": f"/photos/{key}", "vanished": False, "width": size[0], "height": size[1]}
    return {"key": key, "objects": list(objects), **known, **more}


def output(
    folder: Path,
    *parts: Sequence[Mapping[str, Any]],
    schema: pa.Schema = BOXES,
    model: ModelClasses | None = MODEL,
    truth: str = "null",
    aliases: str = "",
) -> Path:
    """Write an output of detection as the engine leaves it."""
    write_job(folder, text=JOB.replace("%s", aliases, 1).replace("%s", truth, 1) + "# %s %s")
    if model is not None:
        (folder / "_job" / "classes.json").write_text(json.dumps(asdict(model)))
    for index, rows in enumerate(parts):
        write_part(folder, index, [dict(row) for row in rows], schema=schema)
    return folder


def put_truth(out: Path, index: int, ids: Any, *classes: Class) -> None:
    path = out / "_job" / "truth" / f"part-{index:08}.parquet"
    path.parent.mkdir(exist_ok=True)
    rows = [{"image_id": one, "width": 640, "height": 480} for one in ids]
    pq.write_table(truth_table(rows, with_classes(OBJECTS_SCHEMA, classes)), path)


PERSON = thing("person", 0.9, 10.25, 20.5, 110.75, 220.0)
LIGHT = thing("traffic light", 0.3, 0.0, 0.0, 5.5, 30.0)
PARTS = [
    [seen("a/one.jpg", PERSON, LIGHT), bad("a/two.jpg", "truncated", "ends early")],
    [seen("three.png"), bad("gone.jpg", "not_found", "no", "read"), seen("old.jpg", PERSON, vanished=True)],
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return output(tmp_path / "out", *PARTS)


def written(out: Path, format: str, to: Path, **options: Any) -> ExportSummary:
    return export(str(out), format, str(to), ExportOptions(**options))


def read(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


# All formats


@pytest.mark.parametrize("format", OF_BOXES)
def test_what_is_left_out_is_said(out: Path, tmp_path: Path, format: str) -> None:
    lines = list(written(out, format, tmp_path / "to", score_threshold=0.9).lines())
    # Of a table nothing is left out but by the threshold.
    count = "2 objects" if format == "csv" else "1 object"
    assert lines[0] == f"{count} of 2 images: {tmp_path / 'to'}"
    assert lines[1].startswith("  failed: 2 images (not_found 1, truncated 1); ")
    assert lines[2].startswith("  gone from the input: 1 image; ")
    assert lines[3:] == ["  below the threshold: 1 object"]


def test_a_run_that_has_not_ended_is_said(out: Path, tmp_path: Path) -> None:
    assert not any("not finished" in line for line in written(out, "csv", tmp_path / "0").lines())
    (out / "_job" / "plan" / "1").mkdir(parents=True)
    (out / "_job" / "plan" / "1" / "00000.parquet").touch()
    assert any("not finished" in line for line in written(out, "csv", tmp_path / "1").lines())
    (out / "_job" / "plan" / "1" / "complete.json").write_text('{"images": 9}')
    lines = list(written(out, "csv", tmp_path / "2").lines())
    assert "  not finished: the run has made 5 of 9 images so far; its command goes on with the rest" in lines
    (out / "_job" / "plan" / "1" / "complete.json").write_text('{"images": 5}')
    assert not any("not finished" in line for line in written(out, "csv", tmp_path / "3").lines())


@pytest.mark.parametrize("format", OF_BOXES)
def test_no_number_that_is_none_is_written(tmp_path: Path, format: str) -> None:
    wrong = [
        thing("person", math.nan, 1, 2, 3, 4),
        thing("person", 0.5, 1, 2, math.inf, 4),
        thing(None, 1, 1, 2, 3, 4),
    ]
    out = output(tmp_path / "out", [seen("a.jpg", *wrong, PERSON)])
    assert list(written(out, format, tmp_path / "to").lines())[1:] == [
        "  without a label or with numbers that are none: 3 objects; left out"
    ]
    text = "".join(path.read_text("utf-8") for path in (tmp_path / "to").rglob("*.*"))
    assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE)


@pytest.mark.parametrize("format", OF_BOXES)
def test_a_place_that_holds_something_is_refused(out: Path, tmp_path: Path, format: str) -> None:
    to = tmp_path / "to"
    to.mkdir()
    written(out, format, to)
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is there already"):
        written(out, format, to)
    (file,) = [
        path
        for path in before
        if path.suffix in (".csv", ".yaml") or path.name in ("results.json", "predicted.txt")
    ]
    with pytest.raises(UserError, match="is there already"):
        written(out, format, file)
    assert before == {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_two_images_of_one_name_are_named_before_anything_is_written(tmp_path: Path, format: str) -> None:
    parts = [[seen("x/photo.jpg"), seen("x/other.jpg")], [seen("x/photo.png")]]
    with pytest.raises(UserError, match=r"'x/photo.jpg' and 'x/photo.png' would both be x/photo\."):
        written(output(tmp_path / "out", *parts), format, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    (tmp_path / "out" / "predictions" / "part-00000001.parquet").unlink()
    write_part(tmp_path / "out", 1, [seen("x/photo.png", vanished=True)], schema=BOXES)
    written(tmp_path / "out", format, tmp_path / "to")


HOSTILE = [
    "../../../escape.jpg",
    "/etc/absolute.jpg",
    "a/../../b.jpg",
    "..",
    ".",
    "s3://bucket/c.jpg",
    "back\\..\\slash.jpg",
    "line\nbreak.jpg",
    "null\0.jpg",
    "x" * 300 + ".jpg",
    "<&\"'>.jpg",
    "photo.jpg#3",
    "ü ? % #.JPG",
    ".jpg",
    "=1+1.jpg",
]


@pytest.mark.parametrize("format", OF_BOXES)
def test_hostile_keys_stay_below_the_folder(tmp_path: Path, format: str) -> None:
    out = output(tmp_path / "out", [seen(key, PERSON) for key in HOSTILE])
    before = set(tmp_path.rglob("*"))
    summary = written(out, format, tmp_path / "to")
    assert summary.counts.images == len(HOSTILE)
    assert all(path.is_relative_to(tmp_path / "to") for path in set(tmp_path.rglob("*")) - before)
    if format in ("voc", "yolo"):
        suffix = {"voc": "xml", "yolo": "txt"}[format]
        folder = tmp_path / "to" / {"voc": "Annotations", "yolo": "labels"}[format]
        assert len(list(folder.rglob(f"*.{suffix}"))) == len(HOSTILE)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_path_never_leaves_its_folder(key: str) -> None:
    names = path_of(key, "images").split("/")
    assert all(name not in ("", ".", "..") and len(name.encode()) <= 240 for name in names)
    assert not re.search(r"[\x00-\x1f\\]", "".join(names))


def test_paths_are_the_keys() -> None:
    found = {
        key: path_of(key, "images")
        for key in ("a/b.c.jpeg", "images/a.PNG", "a/images/b.tif", "images.jpg", "t.parquet#7")
    }
    assert list(found.values()) == ["a/b.c", "a", "a/images/b", "images", "t.parquet#7"]


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_labels_of_images_name_the_format_that_suits(tmp_path: Path, format: str) -> None:
    out = write_output(tmp_path / "out", [[good("a.jpg", "/a.jpg", [("cat", 0.9)])]])
    with pytest.raises(UserError, match=r"is for objects.*(?s:.)*--format csv"):
        written(out, format, tmp_path / "to")
    with pytest.raises(UserError, match="--score-threshold is for objects"):
        written(out, "csv", tmp_path / "to", score_threshold=0.5)
    assert not (tmp_path / "to").exists()


def test_another_kind_of_answer_is_a_plain_column_of_csv(tmp_path: Path) -> None:
    row = {"key": "a.jpg", "uri": "/a.jpg", "vanished": False, "number": 2.5}
    write_part(tmp_path / "out", 0, [row], schema=pa.schema([*ENGINE_COLUMNS, ("number", pa.float64())]))
    written(tmp_path / "out", "csv", tmp_path / "to.csv")
    (found,) = csv.DictReader((tmp_path / "to.csv").read_text().splitlines())
    assert (found["key"], found["number"]) == ("a.jpg", "2.5")
    with pytest.raises(UserError, match=r"coco is for objects(?s:.)*give --format csv"):
        written(tmp_path / "out", "coco", tmp_path / "to")


def test_what_a_person_gets_wrong(out: Path, tmp_path: Path) -> None:
    for words, command in {
        "did you mean coco?": f"export {out} --format cocoo --to {tmp_path / 'to'}",
        "expected an output of a job": f"export {tmp_path} --format coco --to {tmp_path / 'to'}",
        "a number from 0 to 1": f"export {out} --format coco --to {tmp_path / 'to'} --score-threshold nan",
        "a folder of this machine or of a bucket": f"export {out} --format voc --to https://host/folder",
        "--scores is for yolo": f"export {out} --format coco --to {tmp_path / 'to'} --scores",
    }.items():
        done = CliRunner().invoke(app, shlex.split(command))
        assert (done.exit_code, words in done.stderr) == (2, True), done.output
    assert not (tmp_path / "to").exists()


def test_the_command_says_what_it_did_and_imports_no_torch_and_no_ray(out: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from cnnbatch.cli.app import app\n"
        "for name in sys.argv[3:]:\n"
        "  words = ['export', sys.argv[1], '--format', name, '--to', f'{sys.argv[2]}/{name}']\n"
        "  app(words, standalone_mode=False)\n"
        "print({'torch', 'ray'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(out), str(tmp_path), *OF_BOXES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    counts = {name: 3 if name == "csv" else 2 for name in OF_BOXES}
    assert first == [
        *(f"{count} objects of 2 images: {tmp_path / name}" for name, count in counts.items()),
        "set()",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("format", OF_BOXES)
def test_to_a_bucket(out: Path, tmp_path: Path, bucket: Bucket, format: str) -> None:
    keys = ["a b/ü%#?.jpg", "../c.jpg"]
    write_part(out, 2, [seen(key, PERSON) for key in keys], schema=BOXES)
    storage = Storage(bucket.options)
    export(str(out), format, f"{bucket.url}/to", storage=storage)
    written(out, format, tmp_path / "to")
    found = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    bodies = {
        one["Key"]: bucket.client.get_object(Bucket=bucket.name, Key=one["Key"])["Body"].read()
        for one in found
    }
    local = {path for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert bodies == {str(path.relative_to(tmp_path)): path.read_bytes() for path in local}
    with pytest.raises(UserError, match="is there already"):
        export(str(out), format, f"{bucket.url}/to", storage=storage)


def test_a_tree_overwrites_nothing_and_takes_its_own_file_for_written(tmp_path: Path) -> None:
    for _ in range(2):  # as when the answer to the first request was lost
        with Tree(Storage(), str(tmp_path)) as tree:
            tree.write("a.txt", "one")
    with (
        pytest.raises(UserError, match="was there before it was written"),
        Tree(Storage(), str(tmp_path)) as tree,
    ):
        tree.write("a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "one"


def test_a_full_disk_is_the_environments_fault() -> None:
    with pytest.raises(EnvironmentFault, match="TMPDIR"), spool():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_windows_of_rows_keep_objects_with_their_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, 700).tolist()
    points = [{"x": 1.5, "y": 2.0, "visibility": 1.0}, {"x": math.nan, "y": 2.0, "visibility": 1.0}]
    rows = [
        bad(f"{n}.jpg", "empty", "")
        if n % 7 == 3
        else seen(
            f"{n}.jpg",
            *[
                thing("person", 0.5 if m else 0.1, n, m, n + 1, m + 1, keypoints=[points[0], points[m % 2]])
                for m in range(count)
            ],
        )
        for n, count in enumerate(counts)
    ]
    out = output(tmp_path / "out", rows[:300], rows[300:], schema=POSES)
    summary = written(out, "coco", tmp_path / "r.json", score_threshold=0.2)
    found = [(one["image_id"] - 1, one["bbox"][:2]) for one in read(tmp_path / "r.json")]
    expected = [(n, [n, m]) for n, count in enumerate(counts) if n % 7 != 3 for m in range(count) if m == 2]
    assert found == expected
    assert summary.counts.objects == len(expected)
    assert summary.counts.strange == sum(count >= 2 for n, count in enumerate(counts) if n % 7 != 3)


# COCO


def evaluated(truth: COCO, results: COCO, kind: str) -> float:
    evaluation = COCOeval(truth, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.usefixtures("capsys")
def test_coco_results_have_the_ids_of_the_truths_file(tmp_path: Path) -> None:
    """The file numbers its images and classes in its own way, and doesn't know all of the folder."""
    boxes = {101: (10.0, 20.0, 110.5, 220.0), 7: (5.0, 6.0, 77.125, 88.0)}
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": 3,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": 9e3,
            "iscrowd": 0,
        }
        for number, (image, (x1, y1, x2, y2)) in enumerate(boxes.items(), 1)
    ]
    images = [{"id": image, "file_name": f"{image}.jpg", "width": 640, "height": 480} for image in boxes]
    categories = [{"id": 3, "name": "human"}, {"id": 1, "name": "horse"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    parts = [
        [seen("101.jpg", thing("person", 0.9, *boxes[101])), seen("stranger.jpg", PERSON, LIGHT)],
        [seen("7.jpg", thing("person", 0.8, *boxes[7]), LIGHT), bad("other.jpg", "empty", "")],
    ]
    out = output(tmp_path / "out", *parts, truth=str(path), aliases="human: person, horse: null")
    for index, ids in enumerate([["101", None], ["7", None]]):
        put_truth(out, index, ids, Class("human", 3), Class("horse", 1))
    summary = written(out, "coco", tmp_path / "results.json")
    assert list(summary.lines())[0].startswith("3 objects of 2 images")
    assert list(summary.lines())[1].startswith("  not in the COCO file of the ground truth: 2 images")
    truth = COCO(str(path))
    results = truth.loadRes(str(tmp_path / "results.json"))
    assert evaluated(truth, results, "bbox") == pytest.approx(1)
    found = read(tmp_path / "results.json")
    assert [(one["image_id"], one["category_id"]) for one in found] == [(101, 3), (7, 3), (7, 10)]
    assert [one["score"] for one in found] == [0.9, 0.8, 0.3]
    assert found[1]["bbox"] == [5, 6, 72.125, 82]


@pytest.mark.usefixtures("capsys")
def test_coco_results_without_truth_come_with_their_images(out: Path, tmp_path: Path) -> None:
    written(out, "coco", tmp_path / "to")
    truth = COCO(str(tmp_path / "to" / "results.images.json"))
    results = truth.loadRes(str(tmp_path / "to" / "results.json"))
    assert [one["category_id"] for one in results.loadAnns(results.getAnnIds())] == [1, 10]
    images = read(tmp_path / "to" / "results.images.json")
    assert images["categories"] == [{"id": 1, "name": "person"}, {"id": 10, "name": "traffic light"}]
    assert images["images"] == [
        {"id": 1, "file_name": "a/one.jpg", "width": 640, "height": 480},
        {"id": 2, "file_name": "a/two.jpg", "error": "truncated"},
        {"id": 3, "file_name": "three.png", "width": 640, "height": 480},
        {"id": 4, "file_name": "gone.jpg", "error": "not_found"},
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
@pytest.mark.usefixtures("capsys")
def test_coco_masks_and_keypoints_are_evaluated(tmp_path: Path) -> None:
    pixels = np.zeros((480, 640), np.uint8, order="F")
    pixels[20:200, 30:60] = 1
    mask = coco_mask.encode(pixels)
    rle = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    points = [{"x": 30.0 + n, "y": 20.25 + n, "visibility": 2.0} for n in range(17)]
    flat = [value for one in points for value in one.values()]
    more = [("mask", MASK), ("keypoints", pa.list_(KEYPOINT))]
    row = seen("a.jpg", thing("person", 0.9, 30, 20, 60, 200, mask=rle, keypoints=points))
    out = output(tmp_path / "out", [row], schema=schema(*more))
    written(out, "coco", tmp_path / "results.json")
    images = read(tmp_path / "results.images.json")
    whole = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 5400, "bbox": [30, 20, 30, 180]}
    annotation = {**whole, "segmentation": rle, "keypoints": flat, "num_keypoints": 17}
    (tmp_path / "truth.json").write_text(json.dumps({**images, "annotations": [annotation]}))
    truth = COCO(str(tmp_path / "truth.json"))
    results = truth.loadRes(str(tmp_path / "results.json"))
    assert np.array_equal(results.annToMask(results.loadAnns([1])[0]), pixels)
    for kind in ("bbox", "segm", "keypoints"):
        assert evaluated(truth, results, kind) == pytest.approx(1)


def test_coco_ids_that_are_texts_or_names(tmp_path: Path) -> None:
    parts = [[seen("a.jpg", PERSON), seen("b.jpg", PERSON)]]
    for number, (truth, ids, expected) in enumerate(
        [
            ("all.json", ["0a1", "7"], ["0a1", "7"]),
            ("all.json", ["12345678901", "0"], [12345678901, 0]),
            ("null", ["000001", "000002"], [1, 2]),  # VOC's names: there is no file of COCO's
            ("null", ["9", "8"], [9, 8]),
            ("all.json", [None, None], [1, 2]),
        ]
    ):
        out = output(tmp_path / f"out{number}", *parts, truth=truth)
        put_truth(out, 0, ids)
        written(out, "coco", tmp_path / f"{number}.json")
        assert [one["image_id"] for one in read(tmp_path / f"{number}.json")] == expected


def test_coco_truth_of_another_length_is_refused(out: Path, tmp_path: Path) -> None:
    put_truth(out, 0, ["1"])
    with pytest.raises(UserError, match="expected ground truth of 2 rows, got 1"):
        written(out, "coco", tmp_path / "to")


def test_category_ids() -> None:
    names = ["person", "traffic light", "new"]
    assert category_ids(names, MODEL, [], {}) == {"person": 1, "traffic light": 10, "new": 13}
    assert category_ids(["b", "a"], ModelClasses(("b", "a")), [], {}) == {"b": 1, "a": 2}
    other = [Class("a", 10), Class("human", 2)]
    given: dict[str, str | None] = {"human": "person", "a": None}
    assert category_ids(names, MODEL, other, given) == {"person": 2, "traffic light": 13, "new": 14}
    renamed = [Class("person", 1), Class("stoplight", 10)]
    assert category_ids(names[:2], MODEL, renamed, {}) == {"person": 1, "traffic light": 10}


def test_labels_of_a_model_without_classes_are_numbered(tmp_path: Path) -> None:
    rows = [seen("a.jpg", thing("zebra", 0.5, 1, 2, 3, 4)), seen("b.jpg", thing("ant", 0.5, 1, 2, 3, 4))]
    out = output(tmp_path / "out", rows[:1], rows[1:], model=None)
    written(out, "coco", tmp_path / "results.json")
    assert read(tmp_path / "results.images.json")["categories"] == [
        {"id": 1, "name": "ant"},
        {"id": 2, "name": "zebra"},
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("capsys")
def test_what_a_whole_job_leaves_is_exported(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    from tests.tasks.test_detect import JOB as WHOLE
    from tests.tasks.test_detect import coco

    folder, job = photos(3), tmp_path / "job.yaml"
    truth = coco(tmp_path, folder, "person")
    job.write_text(WHOLE.format(photos=folder, truth=truth, out=tmp_path / "out"))
    cnnbatch.run(job, quiet=True, compute={"pool": "inline"}, task={"max_objects": 5})
    written(tmp_path / "out", "coco", tmp_path / "results.json")
    names = {one["name"]: one["id"] for one in read(tmp_path / "results.images.json")["categories"]}
    assert names["person"] == 7
    assert len(set(names.values())) == len(names) >= 80
    COCO(str(truth)).loadRes(str(tmp_path / "results.json"))
    rows = cnnbatch.open(tmp_path / "out").arrow().to_pylist()
    expected = [
        (n, names[one["label"]], one["box"]["x1"]) for n, row in enumerate(rows) for one in row["objects"]
    ]
    found = [(one["image_id"], one["category_id"], one["bbox"][0]) for one in read(tmp_path / "results.json")]
    assert found == expected


# VOC


def test_voc_is_read_again_by_our_own_source(tmp_path: Path) -> None:
    edge = thing("traffic light", 0.5, 630.2, 470.6, 640, 480)
    thin = thing('a <b> & "c" \x01', 0.5, 10.1, 20.1, 10.2, 20.2)
    out = output(
        tmp_path / "out",
        [
            seen("JPEGImages/a.jpg", PERSON, edge, thin),
            seen("JPEGImages/x/b.png"),
            bad("JPEGImages/c.jpg", "empty", ""),
        ],
    )
    to = tmp_path / "to"
    written(out, "voc", to)
    for name in ("a.jpg", "x/b.png", "c.jpg"):
        (to / "JPEGImages" / name).parent.mkdir(parents=True, exist_ok=True)
        (to / "JPEGImages" / name).touch()
    again = source(str(to))
    refs = list(again.refs())
    table = again.truth(Shard(0, tuple(refs)))
    assert table is not None
    rows = dict(zip([ref.key for ref in refs], table.to_pylist(), strict=True))
    first = rows["JPEGImages/a.jpg"]
    assert (first["width"], first["height"]) == (640, 480)
    assert [one["label"] for one in first["objects"]] == ["person", "traffic light", 'a <b> & "c" \ufffd']
    for one, expected in zip(first["objects"][:2], (PERSON, edge), strict=True):
        assert list(one["box"].values()) == pytest.approx(list(expected["box"].values()), abs=0.5)
        assert all(value.is_integer() for value in one["box"].values())
    assert first["objects"][2]["box"] == {"x1": 10, "y1": 20, "x2": 11, "y2": 21}
    assert rows["JPEGImages/x/b.png"]["objects"] == []
    assert rows["JPEGImages/c.jpg"]["objects"] is None
    assert [ref.key for ref in source(str(to), split="predicted").refs()] == [
        "JPEGImages/a.jpg",
        "JPEGImages/x/b.png",
    ]
    assert "<score>0.9</score>" in (to / "Annotations" / "a.xml").read_text()
    assert "<filename>x/b.png</filename>" in (to / "Annotations" / "x" / "b.xml").read_text()


@given(st.lists(st.floats(-50, 150), min_size=4, max_size=4), st.integers(1, 100), st.integers(1, 100))
@settings(max_examples=100)
def test_voc_pixels_are_the_nearest_in_the_image(box: list[float], width: int, height: int) -> None:
    from cnnbatch.output.export.predictions import Found, ImageObjects
    from cnnbatch.output.export.voc import pixels

    xs, ys = sorted(box[:2]), sorted(box[2:])
    image = ImageObjects("a", width, height, ())
    xmin, ymin, xmax, ymax = pixels(Found("a", 1, (xs[0], ys[0], xs[1], ys[1])), image)
    assert 1 <= xmin <= xmax <= width
    assert 1 <= ymin <= ymax <= height
    if 0 <= xs[0] <= xs[1] - 1 and xs[1] <= width:
        assert abs(xmin - 1 - xs[0]) <= 0.5
        assert abs(xmax - xs[1]) <= 0.5


def test_voc_results_are_the_development_kits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.output.export.voc._TOGETHER", 2)
    out = output(
        tmp_path / "out",
        [seen("a b.jpg", PERSON, thing("cup/mug", 0.25, 1, 2, 3, 4), PERSON)],
        [seen("c.jpg", PERSON)],
    )
    written(out, "voc", tmp_path / "to")
    files = {
        path.name: path.read_text().splitlines() for path in (tmp_path / "to" / "results" / "Main").iterdir()
    }
    line = "0.900000 11.250000 21.500000 110.750000 220.000000"
    assert files == {
        "comp4_det_test_person.txt": [f"a b {line}", f"a b {line}", f"c {line}"],
        "comp4_det_test_cup%2Fmug.txt": ["a b 0.250000 2.000000 3.000000 3.000000 4.000000"],
    }
    assert (tmp_path / "to" / "ImageSets" / "Main" / "predicted.txt").read_text() == "a b\nc\n"


# YOLO


def lines(path: Path) -> list[list[float]]:
    return [[float(number) for number in line.split(" ")] for line in path.read_text().splitlines()]


def test_yolo_labels_are_parsed_back(tmp_path: Path) -> None:
    beyond = thing("new", 0.5, -10, 470, 650, 480.5)
    out = output(
        tmp_path / "out",
        [seen("images/x/a.jpg", PERSON, LIGHT, beyond), seen("b.jpg"), bad("c.jpg", "empty", "")],
    )
    written(out, "yolo", tmp_path / "to")
    labels = tmp_path / "to" / "labels"
    assert {str(path.relative_to(labels)) for path in labels.rglob("*.txt")} == {"x/a.txt", "b.txt"}
    assert (labels / "b.txt").read_text() == ""
    data = yaml.safe_load((tmp_path / "to" / "data.yaml").read_text())
    assert data == {"train": "images", "val": "images", "names": {0: "person", 1: "traffic light", 2: "new"}}
    found = np.array(lines(labels / "x" / "a.txt"))
    assert found[:, 0].tolist() == [0, 1, 2]
    sides = found[:, 1:] * [640, 480, 640, 480]
    corners = np.concatenate([sides[:, :2] - sides[:, 2:] / 2, sides[:, :2] + sides[:, 2:] / 2], 1)
    expected = [[10.25, 20.5, 110.75, 220.0], [0.0, 0.0, 5.5, 30.0], [0.0, 470.0, 640.0, 480.0]]
    assert np.allclose(corners, expected, atol=1e-3)


def test_yolo_scores_are_the_last_number(out: Path, tmp_path: Path) -> None:
    written(out, "yolo", tmp_path / "to", scores=True, score_threshold=0.3)
    assert [line[5:] for line in lines(tmp_path / "to" / "labels" / "a" / "one.txt")] == [[0.9], [0.3]]


def test_yolo_poses(tmp_path: Path) -> None:
    points = [{"x": 64.0 * n, "y": 48.0 * n, "visibility": float(n)} for n in range(3)]
    out = output(tmp_path / "out", [seen("a.jpg", {**PERSON, "keypoints": points})], schema=POSES)
    written(out, "yolo", tmp_path / "to")
    assert yaml.safe_load((tmp_path / "to" / "data.yaml").read_text())["kpt_shape"] == [3, 3]
    (line,) = lines(tmp_path / "to" / "labels" / "a.txt")
    assert line[5:] == [0, 0, 0, 0.1, 0.1, 1, 0.2, 0.2, 2]


def filled(corners: Sequence[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    """Say of each pixel whether its centre is inside a polygon, by the even-odd rule."""
    height, width = shape
    ys, xs = np.mgrid[:height, :width] + 0.5
    inside = np.zeros(shape, bool)
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], *corners[:1]], strict=True):
        if y1 != y2:
            crossed = (ys > min(y1, y2)) & (ys < max(y1, y2))
            inside ^= crossed & (xs < x1 + (ys - y1) * (x2 - x1) / (y2 - y1))
    return inside


def as_mask(pixels: np.ndarray) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=100)
def test_an_outline_holds_the_masks_pixels(pixels: np.ndarray) -> None:
    """Whatever it is made of: several parts, holes, corners that touch."""
    corners = outline(pixels)
    assert np.array_equal(filled(corners, (pixels.shape[0], pixels.shape[1])), pixels)


def test_an_outline_has_no_more_points_than_it_turns() -> None:
    pixels = np.zeros((20, 30), bool)
    pixels[5:15, 3:28] = True
    assert sorted(outline(pixels)) == [(3, 5), (3, 15), (28, 5), (28, 15)]


def test_yolo_masks_are_polygons(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64), bool)
    pixels[10:20, 5:60] = True
    pixels[15:40, 30:50] = True
    whole, empty = {**PERSON, "mask": as_mask(pixels)}, {**LIGHT, "mask": as_mask(pixels & False)}
    out = output(tmp_path / "out", [seen("a.jpg", whole, empty, size=(64, 48))], schema=MASKS)
    written(out, "yolo", tmp_path / "to")
    first, second = lines(tmp_path / "to" / "labels" / "a.txt")
    corners = [(round(x * 64), round(y * 48)) for x, y in zip(first[1::2], first[2::2], strict=True)]
    assert np.array_equal(filled(corners, (48, 64)), pixels)
    assert second == pytest.approx([1, 0, 0, 5.5 / 64, 0, 5.5 / 64, 30 / 48, 0, 30 / 48], abs=1e-6)


# CSV


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_an_object_and_one_for_every_other_image(out: Path, tmp_path: Path) -> None:
    written(out, "csv", tmp_path / "to.csv")
    rows = rows_of(tmp_path / "to.csv")
    shown = [[row[name] for name in ("key", "error", "object", "label", "score", "x2")] for row in rows]
    assert shown == [
        ["a/one.jpg", "", "0", "person", "0.9", "110.75"],
        ["a/one.jpg", "", "1", "traffic light", "0.3", "5.5"],
        ["a/two.jpg", "truncated", "", "", "", ""],
        ["three.png", "", "", "", "", ""],
        ["gone.jpg", "not_found", "", "", "", ""],
        ["old.jpg", "", "0", "person", "0.9", "110.75"],
    ]
    assert [row["vanished"] for row in rows] == ["false"] * 5 + ["true"]
    assert (rows[2]["error_stage"], rows[2]["error_message"]) == ("decode", "ends early")


def test_csv_of_labels_has_a_row_an_image(tmp_path: Path) -> None:
    image = good("a.jpg", "/a.jpg", [("cat", 0.9), ("dog, small", 0.1)])
    out = write_output(tmp_path / "out", [[image], [bad("b.jpg", "empty", "no bytes")]])
    summary = written(out, "csv", tmp_path / "to")
    assert list(summary.lines()) == [
        f"1 image: {tmp_path / 'to'}",
        "  failed: 1 image (empty 1); their rows say so",
    ]
    first, second = rows_of(tmp_path / "to" / "predictions.csv")
    assert (first["label"], first["score"], first["width"]) == ("cat", "0.9", "640")
    assert [one["label"] for one in json.loads(first["top"])] == ["cat", "dog, small"]
    assert (second["key"], second["error"], second["label"]) == ("b.jpg", "empty", "")


def test_csv_is_no_formula_and_can_be_undone(tmp_path: Path) -> None:
    keys = [
        "=cmd|'/c calc'!A1",
        "+1",
        "-2+3",
        "@SUM(A1)",
        "\tx",
        "\rx",
        "'=quoted",
        'a "b", c\nd',
        "＝1",
        "plain",
    ]
    kept = [("views", pa.int32()), ("gain", pa.float32()), ("note", pa.string()), ("label", pa.string())]
    rows = [seen(key, PERSON, views=-3, gain=-0.1, note=key, label="of the list") for key in keys]
    out = output(tmp_path / "out", rows, schema=schema(kept=kept))
    written(out, "csv", tmp_path / "to.csv")
    found = rows_of(tmp_path / "to.csv")
    for name in ("key", "note"):
        assert not any(row[name].startswith(tuple("=+-@\t\r＝")) for row in found)
        assert [row[name].removeprefix("'") for row in found] == keys
    assert (found[0]["views"], found[0]["gain"]) == ("-3", "-0.1")
    assert (found[0]["input_label"], found[0]["label"]) == ("of the list", "person")


def test_csv_cells_of_other_kinds(tmp_path: Path) -> None:
    kept = [
        ("bytes_", pa.binary()),
        ("vector", pa.list_(pa.float32())),
        ("pairs", pa.list_(pa.int64())),
        ("day", pa.date32()),
    ]
    points = [{"x": 1.0, "y": 2.0, "visibility": 1.0}]
    row = seen(
        "a.jpg", {**PERSON, "keypoints": points}, bytes_=b"=\xff", vector=[1.0], pairs=[1, 2], day=None
    )
    more = ("keypoints", pa.list_(KEYPOINT))
    written(output(tmp_path / "out", [row], schema=schema(more, kept=kept)), "csv", tmp_path / "to.csv")
    (found,) = rows_of(tmp_path / "to.csv")
    assert (found["bytes_"], found["pairs"], found["day"]) == ("Pf8=", "[1, 2]", "")
    assert json.loads(found["keypoints"]) == [[1, 2, 1]]
    assert "vector" not in found
