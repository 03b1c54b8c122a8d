"""The page of a judged output: its numbers, truth beside prediction, mistakes first, never in the way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as rle

from cnnbatch import truth
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.images import rle as masks
from cnnbatch.metrics import Value
from cnnbatch.output.evaluation import Evaluation, read_evaluation
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.report import write_report
from cnnbatch.report.classes import MOST_OPEN, class_tables, confusion_matrix
from cnnbatch.report.context import ReportContext
from cnnbatch.report.curves import evaluation_charts
from cnnbatch.report.embedded import LEVELS, TOO_LARGE, embedded
from cnnbatch.report.marked import colour, marked
from cnnbatch.report.mistakes import MOST, find_mistakes
from cnnbatch.report.numbers import groups, lacking, meaning_of, notes
from cnnbatch.report.page import SAMPLE_OF_JUDGED
from cnnbatch.report.pictures import Picture
from cnnbatch.report.prediction import Prediction
from cnnbatch.results import Result
from cnnbatch.storage import Storage
from cnnbatch.terminal.screen import Screen
from tests import judged
from tests.conftest import jpeg
from tests.outputs import CLASSIFIED, Part, bad, good, write_job, write_part
from tests.report.test_report import HOSTILE, Page, report, words

CAMERA = pa.schema([*CLASSIFIED, ("camera", pa.string())])
DETECTED = pa.schema([*ENGINE_COLUMNS, ("objects", truth.OBJECTS)])
WIDTH, HEIGHT = 96, 72

Thing = tuple[str, tuple[int, int, int, int], float | None]
"""A class, x1, y1, x2, y2, and the score: None for truth."""


def classified(
    folder: Path, images: Sequence[tuple[str, Sequence[tuple[str, float]] | None]], parts: int = 1
) -> Path:
    """Write and judge an output over images with a truth and guesses, None where they failed."""
    photos = pictures(folder.parent / "photos", len(images))
    rows = [
        {**good(f"{place:03}.jpg", photos[place], guesses), "width": WIDTH, "height": HEIGHT}
        if guesses
        else bad(f"{place:03}.jpg", "truncated", "made so")
        for place, (_, guesses) in enumerate(images)
    ]
    rows = [{**row, "camera": ("left", "right")[place % 2]} for place, row in enumerate(rows)]
    truths = [{"image_id": str(place), "label": label} for place, (label, _) in enumerate(images)]
    write(folder, rows, truths, CAMERA, truth.LABEL_SCHEMA, parts)
    assert evaluate(str(folder), Storage(), Terms(slices=["camera"]))
    return folder


def detected(
    folder: Path, images: Sequence[tuple[Sequence[Thing], Sequence[Thing]]], with_truth: bool = True
) -> Path:
    """Write an output over images with true and found objects, and judge it where it has the truth."""
    photos = pictures(folder.parent / "photos", len(images))
    size = {"width": WIDTH, "height": HEIGHT, "vanished": False}
    rows = [
        {"key": f"{place:03}.jpg", "uri": str(photos[place]), **size, "objects": list(map(thing, found))}
        for place, (_, found) in enumerate(images)
    ]
    truths = [
        {"image_id": str(place), "objects": list(map(thing, there))}
        for place, (there, _) in enumerate(images)
    ]
    write(folder, rows, truths if with_truth else [], DETECTED, truth.OBJECTS_SCHEMA, 1)
    assert (evaluate(str(folder), Storage()) is not None) == with_truth
    return folder


def write(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
    truth_schema: pa.Schema,
    parts: int,
) -> None:
    write_job(folder)
    (folder / "_job" / "truth").mkdir()
    size = -(-len(rows) // parts)
    for index in range(parts):
        some = slice(index * size, (index + 1) * size)
        write_part(folder, index, [dict(row) for row in rows[some]], Part(begin_s=index), schema)
        if truths:
            path = folder / "_job" / "truth" / f"part-{index:08}.parquet"
            pq.write_table(truth.table(truths[some], truth_schema), path)


def pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for place in range(count):
        (folder / f"{place:03}.jpg").write_bytes(jpeg(place, WIDTH, HEIGHT))
    return [folder / f"{place:03}.jpg" for place in range(count)]


def thing(one: Thing) -> dict[str, Any]:
    label, box, score = one
    sides = dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True))
    return {"label": label, "score": score, "box": sides}


def context(folder: Path) -> ReportContext:
    storage = Storage()
    return ReportContext(Result(str(folder), storage), storage)


def metrics(folder: Path) -> Mapping[str, Value]:
    evaluation = read_evaluation(str(folder), Storage())
    assert evaluation is not None
    return evaluation.metrics


def sure(label: str, score: float) -> list[tuple[str, float]]:
    return [(label, score), ("rest", (1 - score) / 2)]


ZOO = [
    ("deer", sure("dog", 0.97)),
    ("dog", sure("dog", 0.9)),
    ("deer", sure("deer", 0.6)),
    ("cat", sure("dog", 0.8)),
    ("cat", None),
    ("deer", sure("cat", 0.7)),
    ("dog", sure("dog", 0.99)),
    ("dog", sure("cat", 0.55)),
]
LEFT, RIGHT = (4, 4, 40, 60), (50, 8, 90, 64)
STREET: list[tuple[list[Thing], list[Thing]]] = [
    ([("car", LEFT, None), ("dog", RIGHT, None)], [("car", LEFT, 0.9), ("dog", (2, 50, 30, 70), 0.8)]),
    ([("car", LEFT, None)], [("car", LEFT, 0.7), ("car", RIGHT, 0.95)]),
    ([("dog", RIGHT, None)], [("dog", RIGHT, 0.85)]),
    ([("dog", RIGHT, None)], [("dog", RIGHT, 0.6), ("bus", LEFT, 0.9)]),
    ([], []),
]


# ---- numbers ------------------------------------------------------------------------------------


def test_every_number_has_its_interval_and_what_it_stands_on(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    known = metrics(folder)
    text = words(report(folder))
    assert "8 images with ground truth, of which 1 failed and count as missed." in text
    top1 = known["top1"]
    assert (top1.value, top1.count) == (3 / 8, 8)
    assert (
        f"top1 images whose best label is the true one 0.375 {top1.low:.3f} to {top1.high:.3f} n = 8" in text
    )
    assert "top5 none `top` has fewer than five classes" in text
    for name, one in known.items():
        if one.value is not None:
            assert re.search(rf"{name}.{{0,90}} {one.value:.3f}", text), name


def test_slices_are_a_table(tmp_path: Path) -> None:
    text = words(report(classified(tmp_path / "out", ZOO)))
    assert "By camera camera Count top1" in text
    assert re.search(r"left 4 0\.500 0\.\d+ to 0\.\d+", text)
    assert re.search(r"right 4 0\.250 0\.\d+ to 0\.\d+", text)


def test_what_was_left_out_is_told_with_an_end() -> None:
    reasons = {f"boxes of the {number}th kind": number for number in range(1, 31)}
    evaluation = Evaluation("detect", 1, 0, "", {}, {}, reasons)
    lines = notes(evaluation)
    assert lines[0] == "30 boxes of the 30th kind"
    assert lines[-1] == "and 10 more in evaluation.json"


def test_numbers_as_words() -> None:
    values = {
        "AP": Value(0.155, 0.1, 0.2, 633),
        "log_loss": Value(2.5, 2.25, 2.75, 10),
        "failed_pairs": Value(3.0, count=1000),
        "APs": Value(None, reason="no object of this size in the ground truth"),
        "mask_AP": Value(1.0, 0.9, 1.0, 3),
    }
    found = {one.name: one for group in groups(values) for one in group.numbers}
    assert found["AP"][1:5] == ("0.155", "0.100 to 0.200", "633", "")
    assert found["AP"].band == (10, 10, 15.5)
    assert (found["log_loss"].value, found["log_loss"].band) == ("2.5", None)
    assert (found["failed_pairs"].value, found["failed_pairs"].of) == ("3", "1,000")
    assert (found["APs"].value, found["APs"].reason) == ("none", "no object of this size in the ground truth")
    assert found["mask_AP"].value == "1.000"
    assert meaning_of("mask_AP") == f"{meaning_of('AP')}, by masks"
    assert meaning_of("TAR@FAR=1e-3").endswith("a share of 1e-3 is falsely accepted")
    assert meaning_of("unheard of") == ""


def test_the_most_specific_kind_leads_and_one_without_values_is_a_line() -> None:
    none = Value(None, reason="no object of this size in the ground truth")
    values = {"AP": Value(0.4), "AP50": Value(0.5), "mask_AP": Value(0.3), "keypoint_AP": none}
    found = groups(values)
    assert [(group.how, [one.name for one in group.numbers]) for group in found] == [
        ("by masks", ["mask_AP"]),
        ("by boxes", ["AP", "AP50"]),
    ]
    assert lacking(values) == ["no numbers by keypoints: no object of this size in the ground truth"]
    assert [(group.how, len(group.numbers)) for group in groups({"top1": none})] == [("", 1)]


# ---- pictures -----------------------------------------------------------------------------------


def test_labels_stand_beside_their_truth(tmp_path: Path) -> None:
    html = report(classified(tmp_path / "out", ZOO))
    text = words(html)
    assert "Actual: deer Predicted: dog (0.97) ✗ 000.jpg" in text
    assert "Actual: dog Predicted: dog (0.90) ✓ 001.jpg" in text
    assert html.count('aria-label="right"') == 3
    assert html.count('aria-label="wrong"') == 8  # Four in the sample, and again among the mistakes.


def test_objects_are_drawn_on_both_pictures(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", STREET)
    html = report(folder)
    text = words(html)
    assert Page(html).tags["img"] == 2 * (len(STREET) + 3)
    assert "Actual: car, dog Predicted: car, dog" in text
    assert "Actual: nothing Predicted: nothing" in text
    assert 'alt="002.jpg: dog"' in html
    assert "Predicted" not in words(report(detected(tmp_path / "without", STREET, with_truth=False)))


def test_a_truth_is_drawn_as_the_predictions_are(tmp_path: Path) -> None:
    """A detector of boxes is not put beside masks; one of masks is."""
    folder = detected(tmp_path / "out", STREET[:1])
    path = folder / "_job" / "truth" / "part-00000000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["objects"][0]["mask"] = encoded(np.ones((HEIGHT, WIDTH), np.uint8))
    pq.write_table(truth.table(rows, truth.OBJECTS_SCHEMA), path)
    places = find_mistakes(context(folder)).shown
    (with_masks,) = context(folder).truths([places[0].place])
    row = Result(str(folder), Storage()).arrow().to_pylist()[0]
    objects = [{name: one[name] for name in ("label", "score", "box")} for one in row["objects"]]
    write_part(folder, 0, [{**row, "objects": objects}], schema=judged.DETECTED)
    (without,) = context(folder).truths([places[0].place])
    assert with_masks
    assert with_masks.answer
    assert with_masks.answer[0]["mask"]
    assert without
    assert without.answer
    assert "mask" not in without.answer[0]


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    found = rle.encode(np.asfortranarray(pixels))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def grey(width: int = 200, height: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height), "#808080")


def changed(drawn: Image.Image) -> np.ndarray:
    found: np.ndarray = (np.abs(np.asarray(drawn).astype(int) - 128) > 8).any(axis=-1)
    return found


def test_a_mask_is_a_veil_with_an_outline() -> None:
    pixels = np.zeros((50, 100), np.uint8)  # Of the original, half as large as its picture here.
    pixels[10:40, 20:60] = 1
    one = {**thing(("cat", (20, 10, 60, 40), None)), "mask": encoded(pixels)}
    drawn = np.asarray(marked(grey(), (100, 50), [one]))
    paint = np.array([int(colour("cat")[place : place + 2], 16) for place in (1, 3, 5)])
    assert (drawn[79, 100] == paint).all()
    inside = drawn[70, 100].astype(float)
    assert np.abs(inside - (0.58 * 128 + 0.42 * paint)).max() < 2
    assert (drawn[10, 10] == 128).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70)), elements=st.integers(0, 1)))
def test_masks_are_read_as_pycocotools_writes_them(made: np.ndarray) -> None:
    read = masks.pixels(encoded(made))
    assert read is not None
    assert (read == made).all()


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=40))
def test_a_mask_is_read_whole_or_not_at_all(counts: str) -> None:
    read = masks.pixels({"size": [5, 4], "counts": counts})
    assert read is None or read.shape == (5, 4)


@pytest.mark.parametrize(
    "mask", [{"size": [9, 9], "counts": "1"}, {"size": [50, 100], "counts": "~~~"}, None]
)
def test_a_mask_that_is_none_is_left_out(mask: Any) -> None:
    plain = thing(("cat", (20, 10, 60, 40), None))
    with_mask = marked(grey(), (100, 50), [{**plain, "mask": mask}])
    assert (np.asarray(with_mask)[50, 80] == 128).all()


def test_keypoints_are_dots_with_bones_between_them() -> None:
    points = [{"x": 5.0 * place, "y": 25.0, "visibility": 2.0} for place in range(17)]
    points[9]["visibility"] = 0.0  # A wrist that is not labelled, at the end of its bone.
    person = thing(("person", (0, 0, 100, 50), None))
    box = changed(marked(grey(), (100, 50), [person]))
    drawn = changed(marked(grey(), (100, 50), [{**person, "keypoints": points}])) & ~box
    row = drawn[50]
    assert row[75:87].all()  # The bone from an elbow to a shoulder on the other side of the missing wrist.
    assert not drawn[:46].any()
    five = changed(marked(grey(), (100, 50), [{**person, "keypoints": points[:5]}])) & ~box
    assert not five[50, 4:6].any()  # Between two points: five are no person's.
    assert five[50, 19]


def test_a_face_has_an_outline_and_no_label_over_its_eyes() -> None:
    face = thing(("face", (20, 10, 60, 40), None))
    assert changed(marked(grey(), (100, 50), [face]))[24:34, 44:60].any()
    drawn = changed(marked(grey(), (100, 50), [{**face, "quality": {"size": 30.0}}]))
    assert drawn[20, 40:120].all()
    assert not drawn[24:76, 44:116].any()


def test_objects_that_can_not_be_drawn_are_left_out() -> None:
    odd: list[dict[str, Any]] = [
        {"label": "a", "score": None, "box": None},
        {"label": None, "score": None, "box": {"x1": 0.0, "y1": 0.0, "x2": 5.0, "y2": None}},
        {"label": "c", "score": None, "box": {"x1": float("nan"), "y1": 0.0, "x2": float("inf"), "y2": 1.0}},
        thing(("far", (-(10**9), -5, 10**9, 10**9), None)),
        {**thing(("b", (9, 9, 3, 3), None)), "keypoints": [{"x": None, "y": 2.0, "visibility": None}]},
    ]
    marked(grey(), (100, 50), odd)


# ---- mistakes -----------------------------------------------------------------------------------


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    found = find_mistakes(context(classified(tmp_path / "out", ZOO, parts=3)))
    assert found.images == 4
    assert [(one.label, round(-one.place.rank, 2)) for one in found.shown] == [
        ("deer", 0.97),
        ("cat", 0.8),
        ("deer", 0.7),
        ("dog", 0.55),
    ]
    assert found.classes == [("deer", 2), ("cat", 1), ("dog", 1)]
    assert [(one.place.part, one.place.row) for one in found.shown] == [(0, 0), (1, 0), (1, 2), (2, 1)]


def test_false_alarms_that_count_come_with_what_was_missed(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", STREET)
    found = find_mistakes(context(folder)).shown
    alarms = [one.alarm for one in found]
    assert [(one.label, round(one.score, 2), one.truths, one.found) for one in alarms if one] == [
        ("car", 0.95, 1, 1),
        ("bus", 0.9, 1, 1),
        ("dog", 0.8, 2, 1),
    ]
    text = words(report(folder))
    assert "dog (0.80) is a false positive; 1 of 2 objects missed" in text
    thresholds = pa.table({"label": ["dog", "car"], "threshold": [0.81, None]})
    pq.write_table(thresholds, folder / "evaluation" / "classes.parquet")
    labels = [one.label for one in find_mistakes(context(folder)).shown]
    assert labels == ["car", "bus"]


def test_mistakes_are_few_of_every_class_and_the_same_in_any_parts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [(f"class {random.zipf(1.6) % 30}", sure("none", float(random.random()))) for _ in range(400)]
    one = find_mistakes(context(classified(tmp_path / "one", images)))
    nine = find_mistakes(context(classified(tmp_path / "nine", images, parts=9)))
    assert [(each.place.rank, each.place.tie) for each in one.shown] == [
        (each.place.rank, each.place.tie) for each in nine.shown
    ]
    assert one.images == 400
    assert len(one.shown) == MOST
    scores = [-each.place.rank for each in one.shown]
    assert scores == sorted(scores, reverse=True)
    ranked = sorted(((float(np.float32(guesses[0][1])), label) for label, guesses in images), reverse=True)
    best = ranked[: MOST // 2]
    assert {score for score, _ in best} <= set(scores)
    known = {label for _, label in best}
    assert len(one.classes) == min(len(known) + MOST // 2, len({label for label, _ in images}))


def test_a_filter_has_a_rule_and_a_count_for_each_class(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", [*ZOO, (HOSTILE, sure("dog", 0.3))])
    html = report(folder)
    page = Page(html)
    assert page.tags["script"] == 0
    assert sum(value == "radio" for value in page.values("type")) == 5
    assert "all 5 deer 2" in words(html)
    shown = re.findall(r'<li class="of-(\d)">', html)
    assert shown == ["1", "3", "1", "4", "2"]
    assert [f"#only-{number}:checked" in html for number in range(1, 6)] == [True] * 4 + [False]
    assert HOSTILE in page.text


# ---- classes and curves -------------------------------------------------------------------------


def test_the_classes_with_most_images_come_first(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    (table,) = class_tables(context(folder), metrics(folder))
    assert table.names == ["Images", "F1", "Precision", "Recall"]
    assert [(row.label, row.truths) for row in table.rows] == [("deer", "3"), ("dog", "3"), ("cat", "2")]
    assert table.rows[1].others == ["0.500", "0.667"]
    assert "dog 3 0.571 0.500 0.667" in words(report(folder))


def test_many_classes_can_be_opened(tmp_path: Path) -> None:
    count = MOST_OPEN + 7
    images = [(f"class {place:02}", sure(f"class {place + place % 2:02}", 0.5)) for place in range(count)]
    folder = classified(tmp_path / "out", images)
    html = report(folder)
    assert "The other 7 classes" in words(html)
    matrix, confusions = confusion_matrix(context(folder))
    assert matrix is not None
    assert (len(matrix.rows), matrix.count) == (20, count)
    assert matrix.columns[-1] == "other"
    assert all(sum(cell.amount for cell in row.cells) == row.amount for row in matrix.rows)
    assert len(confusions) == count // 2
    assert confusions[0][2:] == (1, 1.0)


def test_the_confusion_matrix_counts_failures(tmp_path: Path) -> None:
    matrix, confusions = confusion_matrix(context(classified(tmp_path / "out", ZOO)))
    assert matrix is not None
    assert (list(matrix.columns), confusions) == (["cat", "deer", "dog", "failed"], [])
    counts = {row.label: [cell.amount for cell in row.cells] for row in matrix.rows}
    assert counts == {"cat": [0, 0, 1, 1], "deer": [1, 1, 1, 0], "dog": [1, 0, 2, 0]}
    assert [cell.right for cell in matrix.rows[2].cells] == [False, False, True, False]
    assert max(cell.tint for row in matrix.rows for cell in row.cells) <= 50


def test_the_curves_are_those_of_the_numbers(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", STREET)
    known = metrics(folder)
    (chart,) = evaluation_charts(context(folder), known)
    assert chart.title == "Precision over recall"
    assert chart.chart.legend[0] == ("line-0", f"at IoU 0.5, area {known['AP50'].value:.3f}")
    assert chart.chart.legend[1] == ("line-1", f"at IoU 0.75, area {known['AP75'].value:.3f}")
    assert chart.chart.plot.count('class="dot"') == 2
    assert "dog: threshold 0.800, precision" not in chart.chart.plot
    assert "<title>dog: threshold 0.600, precision 0.667, recall 0.667</title>" in chart.chart.plot


def test_roc_has_a_logarithmic_axis_and_operating_points(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    far = [0.0, 0.001, 0.01, 0.1, 1.0]
    table = pa.table({"threshold": [9.0, 0.9, 0.8, 0.7, 0.1], "far": far, "tar": [0.1, 0.5, 0.7, 0.9, 1.0]})
    pq.write_table(table, folder / "evaluation" / "roc.parquet")
    known = {"AUC": Value(0.93), "TAR@FAR=1e-2": Value(0.7), "TAR@FAR=1e-4": Value(None, reason="too few")}
    roc = next(one for one in evaluation_charts(context(folder), known) if one.title == "ROC")
    assert list(roc.chart.across) == ["1e-3", "1e-2", "1e-1", "1"]
    assert "M0.0 80.0 L0.0 144.0" not in roc.chart.plot
    assert "200.0 48.0" in roc.chart.plot  # FAR 1e-2 is a third of the way from 1e-3 to 1, TAR 0.7.
    assert roc.chart.plot.count('class="dot"') == 1
    assert roc.chart.summary == "TAR 0.700 at FAR 1e-2"


def test_reliability_is_accuracy_by_score(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    chart = next(one for one in evaluation_charts(context(folder), metrics(folder)) if one.strip)
    assert chart.chart.plot.count("<rect") == 6
    assert "score 0.93 to 1.00: 2 images, accuracy 0.500, mean score 0.980" in chart.chart.plot
    assert chart.chart.summary == "On average it is overconfident: mean score 0.787, accuracy 0.429"


def test_a_training_has_its_curves(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    measured = {
        "epoch": [0, 1, 2, 3],
        "loss": [2.0, None, 0.5, 0.75],
        "phase": ["a"] * 4,
        "once": [1.0] + [None] * 3,
    }
    pq.write_table(pa.table(measured), folder / "metrics.parquet")
    text = words(report(folder))
    assert "Training loss 20.5 0epoch 3 0.75 at the end, between 0.5 and 2" in text
    assert "once" not in text


# ---- whatever there is --------------------------------------------------------------------------


def test_a_report_never_fails_for_what_is_missing_or_damaged(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    for path in (folder / "evaluation").glob("*.parquet"):
        path.write_bytes(b"PAR1 no more")
    (folder / "_job" / "truth" / "part-00000000.parquet").unlink()
    text = words(report(folder))
    assert "top1" in text
    assert "Actual" not in text
    (folder / "evaluation.json").write_text('{"task": "classify", "excluded": {}, "metrics": {}}')
    html = report(folder)
    text = words(html)
    assert "evaluation.json is of another version, or damaged. cnnbatch evaluate" in text
    assert "Metrics" not in Page(html).headings


def test_tables_of_another_version_are_left_out(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", STREET)
    for path in (folder / "evaluation").glob("*.parquet"):
        pq.write_table(pa.table({"label": ["x"]}), path)
    html = report(folder)
    text = words(html)
    assert "Metrics" in Page(html).headings
    assert "Class by class" not in text


def test_hostile_classes_stay_text_everywhere(tmp_path: Path) -> None:
    hostile = [
        ([(HOSTILE, LEFT, None)], [(HOSTILE, LEFT, 0.9), (HOSTILE, RIGHT, 0.95), ("car", RIGHT, 0.9)]),
        ([("car", LEFT, None)], [("car", RIGHT, 0.99)]),
    ]
    html = report(detected(tmp_path / "out", hostile))
    page = Page(html)
    assert page.tags["script"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 4


@pytest.mark.slow
def test_pictures_that_compress_badly_become_smaller(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (400, 400, 3), np.uint8))
    many = [[Picture(Prediction(f"{place}", ""), noise, actual=noise) for place in range(10)]] * 2
    (one,) = embedded([many[0][:1]])
    size = sum(len(view.uri) for view in one[0].views)
    assert one[0].views[0].width == 400
    cards = [card for gallery in embedded(many, 10 * size) for card in gallery]
    assert {view.width for card in cards for view in card.views} == {300}
    cards = [card for gallery in embedded(many, 2 * size) for card in gallery]
    assert {view.width for card in cards for view in card.views} == {round(400 * LEVELS[-1][0])}
    shown = [bool(card.views) for card in cards]
    assert shown == sorted(shown, reverse=True)
    assert 0 < sum(shown) < len(shown)
    assert cards[-1].reason == TOO_LARGE
    assert sum(len(view.uri) for card in cards for view in card.views) <= 2 * size


@pytest.mark.slow
def test_a_page_of_noise_stays_below_eight_megabytes(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", [STREET[place % 2] for place in range(100)])
    random = np.random.default_rng(0)
    for place in range(100):
        pixels = random.integers(0, 256, (400, 400, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{place:03}.jpg", quality=95)
    html = report(folder)
    assert Page(html).tags["img"] == 2 * (SAMPLE_OF_JUDGED + MOST)
    assert 2e6 < len(html) < 8e6


def test_long_names_are_cut(tmp_path: Path) -> None:
    name = "very " * 4_000
    labels = [(f"{name}{place}", sure("dog", 0.5)) for place in range(12)]
    assert len(report(classified(tmp_path / "labels", labels))) < 400_000
    objects = [([(f"{name}{place}", LEFT, None)], [(f"{name}{place}", RIGHT, 0.9)]) for place in range(12)]
    assert len(report(detected(tmp_path / "objects", objects))) < 400_000


def test_the_pictures_are_counted_while_they_are_read(tmp_path: Path) -> None:
    folder = classified(tmp_path / "out", ZOO)
    totals: list[int] = []
    done: list[int] = []

    def begin(total: int) -> Any:
        totals.append(total)
        return done.append

    write_report(str(folder), Storage(), begin)
    assert totals == [7 + 4]
    assert sum(done) == totals[0]


def test_the_screen_counts_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(Screen, "progress", lambda screen, line: shown.append(line))
    advance = Screen(quiet=True).stage("report", 96, unit="pictures")
    advance(12)
    assert shown[0].startswith("report 12/96 pictures · ")


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", STREET)
    assert report(folder) == report(folder)
