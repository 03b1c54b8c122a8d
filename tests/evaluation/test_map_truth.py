"""Maps as ground truth of an evaluation: classes by the model's names, and pixels that are not judged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.evaluation.ground_truths import Naming, PlannedImages, ground_truth
from cnnbatch.evaluation.parts import NO_TRUTH, OTHER_SIZE, UNUSABLE, _without_truth
from cnnbatch.evaluation.truths import TruthByKey
from cnnbatch.images import class_map
from cnnbatch.metrics.numbering import numbering
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.truth import MAP_SCHEMA, Class, classes_of, ignored_of, with_classes, with_ignored
from cnnbatch.truth.classes import ModelClasses, match_map_classes
from cnnbatch.types import Shard, Source
from tests.conftest import jpeg
from tests.sourcing import source

SCHEMA = with_ignored(with_classes(MAP_SCHEMA, [Class("sky", 0), Class("car", 1), Class("tree", 4)]), {9})
NUMBERS = np.array([[0, 1, 4], [4, 4, 9]], np.uint8)


def maps(*numbers: Any) -> Any:
    rows = [{"image_id": "x", "map": None if one is None else class_map.png(one)} for one in numbers]
    return truth.table(rows, SCHEMA)


def naming(names: tuple[str, ...], aliases: dict[str, str | None] | None = None) -> Naming:
    return Naming(ModelClasses(names), aliases or {}, {})


def test_known_classes_have_the_model_s_names_and_the_metric_counts_the_others() -> None:
    true = maps(NUMBERS, None, NUMBERS)
    table, notes = ground_truth("map").named(true, naming(("auto", "sky", "road"), {"car": "auto"}))
    assert classes_of(table.schema) == (Class("sky", 0), Class("auto", 1), Class("tree", 4))
    assert ignored_of(table.schema) == {9}
    assert table.drop(["image_id"]).equals(true.drop(["image_id"]))
    assert notes == {}
    known = numbering(table.schema, ("auto", "sky", "road"))
    assert (known.names, known.unknown) == (("auto", "sky"), ("tree",))


def test_the_job_calls_classes_and_leaves_some_out() -> None:
    aliases: dict[str, str | None] = {"tree": "plant", "sky": None}
    table, notes = ground_truth("map").named(maps(NUMBERS), naming(("plant", "car"), aliases))
    assert classes_of(table.schema) == (Class("car", 1), Class("plant", 4))
    assert ignored_of(table.schema) == {0, 9}
    assert notes == {"pixels of sky, a class that is left out": 1}


def test_two_classes_of_the_truth_may_be_one_of_the_model() -> None:
    table, _ = ground_truth("map").named(maps(NUMBERS), naming(("car",), {"tree": "car", "sky": "car"}))
    assert classes_of(table.schema) == (Class("car", 0), Class("car", 1), Class("car", 4))


def test_where_none_is_known_nothing_is_judged() -> None:
    with pytest.raises(UserError, match="none of the classes of the ground truth's maps"):
        ground_truth("map").named(maps(NUMBERS), naming(("road",)))
    table, notes = ground_truth("map").named(maps(NUMBERS), Naming(None, {}, {}))
    assert (table.schema, notes) == (SCHEMA, Counter())


def test_values_without_names_are_told_how_to_be_named() -> None:
    numbers = [Class(str(number), number) for number in range(255)]
    with pytest.raises(
        UserError, match=r"(?s)have no names.*: sky, car\n.*relabel=\{0: sky, 1: car\}' and so"
    ):
        match_map_classes(ModelClasses(("sky", "car")), numbers, {})
    trained = match_map_classes(ModelClasses(("0", "1")), numbers, {})
    assert trained["1"] == "1"


def test_images_without_a_map_are_counted_by_their_reason() -> None:
    size = "its ground truth is for 3 x 4 pixels, the image has 5 x 6; its map is left out"
    problems = [size, "it has 2 masks", None]
    table = truth.table([{"image_id": "x", "problem": problem} for problem in problems], SCHEMA)
    assert _without_truth(table) == {OTHER_SIZE: 1, UNUSABLE: 1, NO_TRUTH: 1}


def masked(folder: Path, size: tuple[int, int] = (48, 64), value: int = 1) -> Source:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for name in ("a", "b"):
        (folder / "images" / f"{name}.jpg").write_bytes(jpeg(1))
        Image.fromarray(np.full(size, value, np.uint8)).save(folder / "masks" / f"{name}.png")
    (folder / "classes.txt").write_text("sky\ncar\n")
    return source(f"{folder}/images", truth=f"{folder}/masks")


def early(found: Source, names: tuple[str, ...] = ("car",)) -> None:
    planned = PlannedImages(found, lambda: [None, Shard(0, tuple(found.refs()))], True, {})
    ground_truth("map").require_early(ModelClasses(names), planned)


def test_whole_maps_of_known_classes_pass_before_the_first_shard(tmp_path: Path) -> None:
    early(masked(tmp_path))


@pytest.mark.parametrize(
    ("made", "names", "words"),
    [
        ({}, ("road",), "none of the classes of the ground truth's maps"),
        ({"size": (48, 63)}, ("car",), "a.jpg: its ground truth is for 63 x 48 pixels, the image has 64"),
        (
            {"value": 2},
            ("car",),
            r"(?s)b.jpg: its mask b.png has values which no class has: 2.*input.ignore=\[2\]",
        ),
    ],
)
def test_mistakes_are_refused_before_the_first_shard(
    made: dict[str, Any], names: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        early(masked(tmp_path, **made), names)


def test_maps_wait_on_disk_to_be_joined_by_key(tmp_path: Path) -> None:
    found = masked(tmp_path)
    kept = TruthByKey(SourceWrapper(found))
    table, count = kept.of(["b.jpg", "nothing", "a.jpg"])
    expected = found.truth(Shard(0, tuple(found.refs())))
    assert expected is not None
    assert count == 2
    assert table["map"].to_pylist() == [expected["map"][1].as_py(), None, expected["map"][0].as_py()]
    assert table.schema.equals(expected.schema, check_metadata=True)
