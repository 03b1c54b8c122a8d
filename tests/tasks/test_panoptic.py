"""Both networks on one picture, merged as the published rule merges what each of them says alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.images.panoptic import Rule
from cnnbatch.job import MapJob, fingerprint_fields
from cnnbatch.tasks.panoptic import Panoptic
from cnnbatch.types import Image, ImageRef, Runtime
from tests import tiny_instances as tiny
from tests.images.test_panoptic import transcribed
from tests.tasks.test_task_contract import predict

STUFF = ("sky", "grass", "road")
SIZES = ((60, 80), (60, 80), (120, 70), (48, 200))


def task(**fields: Any) -> Panoptic:
    semantic = {"model": "tests.tiny_segmenter:convolutions"}
    instances = {"model": "tests.tiny_instances:seeing", "weights": "random"}
    both = {"semantic": {**semantic, **fields.pop("semantic", {})}, "instances": instances}
    return Panoptic.model_validate({**both, "stuff_area": 40, "score": 0.0, **fields})


def pictures() -> list[Image]:
    found = []
    for number, size in enumerate(SIZES):
        drawn, _ = tiny.drawn(number, size)
        pixels = torch.from_numpy(np.asarray(drawn).copy()).permute(2, 0, 1)
        found.append(Image(ImageRef(f"{number}.png", ""), pixels, size))
    return found


def inside(one: dict[str, Any]) -> NDArray[np.bool_]:
    return tiny.inside(one["mask"])


@pytest.mark.parametrize("overlap", [0.1, 0.5])
def test_rows_are_what_the_rule_makes_of_both_networks_rows(overlap: float) -> None:
    made = task(overlap=overlap)
    rows = predict(made.load(Runtime("cpu")), pictures())
    assert rows.schema == made.columns()
    semantic, instances = (
        predict(one.load(Runtime("cpu")), pictures()).to_pylist()
        for one in (made.semantic, made.instances.model_copy(update={"score_threshold": 0.0}))
    )
    kinds = set()
    for row, pixels, things in zip(rows.to_pylist(), semantic, instances, strict=True):
        masks = [inside(one) for one in things["objects"]]
        scores = [one["score"] for one in things["objects"]]
        numbers = class_map.from_png(pixels["map"]).astype(np.int64)
        expected = transcribed(masks, scores, numbers, {0, 1, 2}, Rule(overlap, 0.0, 40))
        assert len(row["objects"]) == len(expected)
        for one, (mask, is_thing, number) in zip(row["objects"], expected, strict=True):
            assert np.array_equal(inside(one), mask)
            whose = things["objects"][number] if is_thing else {"label": STUFF[number], "score": None}
            assert (one["label"], one["score"]) == (whose["label"], whose["score"])
            assert one["is_thing"] == is_thing
            kinds.add(is_thing)
    assert kinds == {True, False}


def test_the_job_chooses_which_classes_are_stuff() -> None:
    rows = predict(task(stuff=["sky"], score=1.0).load(Runtime("cpu")), pictures()).to_pylist()
    assert {one["label"] for row in rows for one in row["objects"]} == {"sky"}
    with pytest.raises(
        UserError, match=r"task\.stuff: the semantic network has no class 'skye'; did you mean sky\?"
    ):
        task(stuff=["skye"]).load(Runtime("cpu"))


def test_the_model_knows_the_classes_of_both_and_what_it_is() -> None:
    model = task().load(Runtime("cpu"))
    assert model.classes.names == ("__background__", "bar", "disc", "sky", "grass", "road")
    assert model.identity["weights"].startswith("convolutions and random:0")
    assert model.identity["stuff"] == "sky, grass, road"


def test_classes_of_things_are_no_stuff() -> None:
    fields = {"semantic": {"classes": ["background", "disc", "lawn"]}}
    model = task(**fields).load(Runtime("cpu"))
    assert model.identity["stuff"] == "lawn"


def test_a_class_is_of_things_or_of_stuff() -> None:
    fields = {"semantic": {"classes": ["background", "disc", "lawn"]}}
    with pytest.raises(UserError, match=r"task\.stuff: 'disc' is a class of task\.instances, too"):
        task(**fields, stuff=["disc"]).load(Runtime("cpu"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"aliases": {"a": "sky"}}, r"semantic\.aliases: .* task\.aliases are for the classes of both"),
        ({"map": "asset"}, r"semantic\.map: .* the rows have masks instead of a map"),
        ({"uncertain": 3}, r"semantic\.uncertain: .* only the task segment"),
    ],
)
def test_fields_without_a_meaning_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task(semantic=fields)


@pytest.mark.parametrize("network", ["semantic", "instances"])
def test_what_is_wrong_with_a_network_is_said_by_its_own_field(network: str, tmp_path: Path) -> None:
    wrong = {"model": "deeplabv3_resnet50" if network == "semantic" else tiny.MODEL}
    wrong["weights"] = str(tmp_path / "task.weights.pth")
    with pytest.raises(UserError, match=rf"^task\.{network}\.weights: ") as refused:
        task(**{network: wrong}).load(Runtime("cpu", "fp32", "eager"))
    assert str(refused.value).count(f"{network}.weights") == 1
    assert wrong["weights"] in str(refused.value)


def test_how_storage_is_reached_changes_no_row() -> None:
    plain, other = (
        MapJob.model_validate(
            {"task": {**task(semantic=fields).model_dump(), "name": "panoptic"}, "input": "a", "output": "b"}
        )
        for fields in ({}, {"storage": {"region": "eu-west-1"}})
    )
    assert other.task != plain.task
    assert fingerprint_fields(other) == fingerprint_fields(plain)
    assert fingerprint_fields(plain)["task"]["semantic"]["flips"] is False


@pytest.mark.parametrize("pool", ["inline", pytest.param("local", marks=pytest.mark.slow)])
def test_a_whole_job_writes_segments_that_do_not_overlap(tmp_path: Path, pool: str) -> None:
    (tmp_path / "photos").mkdir()
    for number, size in enumerate(SIZES):
        tiny.drawn(number, size)[0].save(tmp_path / "photos" / f"{number}.png")
    made = task().model_dump(exclude={"name"}, exclude_defaults=True)
    cnnbatch.run(
        "panoptic",
        quiet=True,
        task=made,
        input=str(tmp_path / "photos"),
        output=str(tmp_path / "out"),
        compute={"pool": pool, "workers": 1, "precision": "fp32", "backend": "eager", "batch": 2},
    )
    rows = cnnbatch.open(tmp_path / "out").arrow(["objects", "error"]).to_pylist()
    assert [row["error"] for row in rows] == [None] * len(SIZES)
    for row, size in zip(rows, SIZES, strict=True):
        assert row["objects"]
        assert np.array([inside(one) for one in row["objects"]]).sum(axis=0).max() == 1
        assert {tuple(one["mask"]["size"]) for one in row["objects"]} == {size}
    alone = predict(task().load(Runtime("cpu")), pictures()[:1]).to_pylist()
    assert rows[0]["objects"] == [
        {**one, "score": pytest.approx(one["score"])} for one in alone[0]["objects"]
    ]
