"""Outputs of maps and of segments, judged by their truth: by name, in every encoding, in any split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from cnnbatch import truth
from cnnbatch.cluster.process_map import ProcessMap
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.evaluation.judges import judges
from cnnbatch.metrics import Schemas, semantic
from cnnbatch.output.evaluation import Evaluation
from cnnbatch.storage import Storage
from cnnbatch.truth import Class
from tests.segmented import SEGMENT, Maps, Segment, asset, blocks, write_maps, write_segments

IMAGES = 12
MODEL = ("background", "car", "road", "sky")
CLASSES = [Class("sky", 10), Class("road", 3), Class("car", 26), Class("fence", 40)]
NUMBERS = {"sky": 10, "road": 3, "car": 26}


def evaluated(folder: Path, terms: Terms = Terms(), **options: Any) -> Evaluation:  # noqa: B008
    evaluation = evaluate(str(folder), Storage(), terms, **options)
    assert evaluation is not None
    return evaluation


def values(evaluation: Evaluation) -> dict[str, float | None]:
    return {name: value.value for name, value in evaluation.metrics.items()}


@pytest.fixture(scope="module")
def predicted() -> list[NDArray[np.uint8]]:
    return [blocks(place, len(MODEL)) for place in range(IMAGES)]


@pytest.fixture(scope="module")
def true(predicted: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Return maps in the truth's own numbers, near the predictions; the background is ignored."""
    table = np.array([255, *(NUMBERS[name] for name in MODEL[1:])], np.uint8)
    found = [table[np.roll(one, 3, 1)] for one in predicted]
    found[1][5:9, 5:30] = 40  # A class that the model does not know.
    return found


def plain(predicted: Sequence[Any], true: Sequence[Any]) -> tuple[float, float, float]:
    """Return mIoU over all pixels, its mean over the images, and pixel accuracy, from plain confusions."""
    matrices = []
    for said, real in zip(predicted, true, strict=True):
        matrix = np.zeros((3, 4), int)
        for row, name in enumerate(MODEL[1:]):
            here = said[real == NUMBERS[name]]
            matrix[row] = [(here == number).sum() for number in (1, 2, 3, 0)]
        matrices.append(matrix)
    whole = sum(matrices)
    assert isinstance(whole, np.ndarray)
    return iou(whole, 0), float(np.mean([iou(one, 1) for one in matrices])), whole.trace() / whole.sum()


def iou(matrix: NDArray[Any], least: int) -> float:
    union = matrix.sum(1) + matrix.sum(0)[:3] - matrix.diagonal()
    some = matrix.sum(1) >= least
    return float(np.mean(matrix.diagonal()[some] / union[some]))


@pytest.mark.parametrize("encoding", ["png", "rle", "asset"])
def test_maps_are_judged_by_the_names_of_their_classes(
    tmp_path: Path, predicted: Any, true: Any, encoding: str
) -> None:
    how = Maps(MODEL, CLASSES, encoding=encoding)
    evaluation = evaluated(write_maps(tmp_path / "out", predicted, true, how))
    assert list(evaluation.metrics) == [
        *("mIoU", "mIoU_per_image", "pixel_accuracy", "mean_accuracy", "frequency_weighted_IoU"),
        *("boundary_F1", "boundary_IoU"),
    ]
    found = values(evaluation)
    names = ("mIoU", "mIoU_per_image", "pixel_accuracy")
    assert [found[name] for name in names] == pytest.approx(plain(predicted, true), rel=1e-12)
    assert evaluation.notes == {
        semantic.IGNORED: sum(int((one == 255).sum()) for one in true),
        semantic.UNKNOWN_CLASS.format("fence"): 100,
    }
    table = pq.read_table(tmp_path / "out" / "evaluation" / "classes.parquet")
    assert table["label"].to_pylist() == ["car", "road", "sky"]
    rows = pq.read_table(tmp_path / "out" / "evaluation" / "images.parquet")
    assert rows["key"].to_pylist() == [f"{place:03}.jpg" for place in range(IMAGES)]
    assert np.mean(rows["mIoU"].to_numpy()) == pytest.approx(found["mIoU_per_image"])


def test_parts_workers_and_encodings_change_nothing(tmp_path: Path, predicted: Any, true: Any) -> None:
    one = evaluated(write_maps(tmp_path / "one", predicted, true, Maps(MODEL, CLASSES, parts=1)))
    many = write_maps(tmp_path / "many", predicted, true, Maps(MODEL, CLASSES, encoding="rle", parts=4))
    alone, side_by_side = evaluated(many), evaluated(many, apply=ProcessMap(2))
    assert alone.metrics == side_by_side.metrics
    assert values(one) == pytest.approx(values(alone), rel=1e-12)


def test_slices_are_evaluations_of_their_images(tmp_path: Path, predicted: Any, true: Any) -> None:
    how = Maps(MODEL, CLASSES)
    evaluation = evaluated(write_maps(tmp_path / "out", predicted, true, how), Terms(slices=["camera"]))
    for side, camera in enumerate(("left", "right")):
        some = plain(predicted[side::2], true[side::2])
        found = evaluation.slices["camera"][camera]
        assert [found[name].value for name in ("mIoU", "mIoU_per_image")] == pytest.approx(some[:2])


def test_a_failed_image_is_a_miss_and_one_without_truth_is_none(
    tmp_path: Path, predicted: Any, true: Any
) -> None:
    said, real = [*predicted], [*true]
    said[3], real[5] = None, None
    evaluation = evaluated(write_maps(tmp_path / "out", said, real, Maps(MODEL, CLASSES)))
    missed = [np.zeros_like(predicted[3]) if one is None else one for one in said]
    del missed[5], real[5]
    found = values(evaluation)
    assert [found["mIoU"], found["mIoU_per_image"]] == pytest.approx(plain(missed, real)[:2])
    assert (evaluation.images, evaluation.failed) == (IMAGES - 1, 1)
    assert evaluation.metrics["mIoU"].count == IMAGES - 1


def test_a_map_that_is_damaged_is_named(tmp_path: Path, predicted: Any, true: Any) -> None:
    folder = write_maps(tmp_path / "out", predicted, true, Maps(MODEL, CLASSES, encoding="asset"))
    asset(folder, 7).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"the map of 007\.jpg can't be read: it is no whole PNG"):
        evaluated(folder)
    asset(folder, 7).unlink()
    with pytest.raises(UserError, match=r"assets/map/part-00000000/00000007-\w+\.png is missing"):
        evaluated(folder)


def test_an_address_leads_nowhere_else(tmp_path: Path, predicted: Any, true: Any) -> None:
    folder = write_maps(tmp_path / "out", predicted, true, Maps(MODEL, CLASSES, encoding="asset"))
    path = folder / "predictions" / "part-00000000.parquet"
    table = pq.read_table(path)
    for address in ("../photos/a.png", "/etc/passwd", "assets/../../a.png", "s3://b/a.png", ""):
        maps = pa.array([address, *table["map"].to_pylist()[1:]])
        pq.write_table(table.set_column(table.schema.get_field_index("map"), "map", maps), path)
        with pytest.raises(UserError, match="expected the address of an object in the output"):
            evaluated(folder)


def test_what_maps_can_be_judged_by() -> None:
    columns = {kind: pa.schema([("map", kind)]) for kind in (truth.MAP, truth.MAP_RUNS, pa.string())}
    for schema in columns.values():
        assert judges(Schemas(schema, truth.MAP_SCHEMA)) == ["maps"]
    assert judges(Schemas(pa.schema([("map", pa.int32())]), truth.MAP_SCHEMA)) == []
    assert judges(Schemas(columns[truth.MAP], truth.LABEL_SCHEMA)) == []


def segments(labels: NDArray[np.uint8], names: Sequence[str], **more: Any) -> list[Segment]:
    """Return a segment for each number of a map but 0; names in capitals are things."""
    some = [number for number in range(1, len(names) + 1) if (labels == number).any()]
    return [
        Segment(names[number - 1], labels == number, names[number - 1].isupper(), **more) for number in some
    ]


SEGMENTS = ("CAR", "PERSON", "road", "sky")


def test_segments_are_judged_by_panoptic_quality_first(tmp_path: Path) -> None:
    maps = [blocks(place, 5) for place in range(IMAGES)]
    true = [segments(one, SEGMENTS) for one in maps]
    said = [segments(np.roll(one, 2, 1), SEGMENTS, score=0.9) for one in maps]
    evaluation = evaluated(write_segments(tmp_path / "out", [None, *said[1:]], true, SEGMENTS))
    names = list(evaluation.metrics)
    assert names[:3] == ["PQ", "SQ", "RQ"]
    assert {"AP", "mask_AP", "PQ_things", "PQ_stuff"} <= set(names)
    assert 0 < (evaluation.metrics["PQ"].value or 0) < 1
    table = pq.read_table(tmp_path / "out" / "evaluation" / "panoptic_classes.parquet").to_pydict()
    assert dict(zip(table["label"], table["is_thing"], strict=True)) == {
        name: name.isupper() for name in SEGMENTS
    }
    things = pq.read_table(tmp_path / "out" / "evaluation" / "mask_classes.parquet")
    assert things["label"].to_pylist() == ["CAR", "PERSON"]  # Nobody counts the sky one by one.
    rows = pq.read_table(tmp_path / "out" / "evaluation" / "images.parquet").to_pylist()
    assert rows[0]["PQ"] == 0
    assert rows[0]["segments_found"] == 0


def test_a_perfect_panoptic_output(tmp_path: Path) -> None:
    true = [segments(blocks(place, 5), SEGMENTS) for place in range(IMAGES)]
    said = [segments(blocks(place, 5), SEGMENTS, score=0.8) for place in range(IMAGES)]
    folder = write_segments(tmp_path / "out", said, true, SEGMENTS)
    evaluation = evaluated(folder, Terms(slices=["camera"]), apply=ProcessMap(2))
    assert set(values(evaluation).values()) <= {1.0, None}
    assert evaluation.slices["camera"]["left"]["PQ"].value == 1


def test_objects_that_say_no_kind_have_no_panoptic_quality(tmp_path: Path) -> None:
    said = [segments(blocks(place, 5), SEGMENTS, score=0.8) for place in range(4)]
    true = [[Segment(one.label, one.inside, None) for one in some] for some in said]
    evaluation = evaluated(write_segments(tmp_path / "out", said, true, SEGMENTS))
    assert evaluation.metrics["PQ"].value is None
    count = sum(map(len, true))
    assert evaluation.notes == {"true objects that say neither thing nor stuff": count}
    plain = pa.schema([("objects", pa.list_(pa.struct([*SEGMENT][:4])))])
    assert "panoptic" not in judges(Schemas(plain, truth.OBJECTS_SCHEMA))
