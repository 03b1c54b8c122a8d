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
from cnnbatch.tasks.panoptic import Panoptic
from cnnbatch.types import Image, ImageRef, Runtime
from tests import tiny_instances as tiny
from tests.images.test_panoptic import transcribed
from tests.tasks.test_task_contract import predict

SIZES = ((60, 80), (60, 80), (120, 70), (48, 200))


def task(**fields: Any) -> Panoptic:
    semantic = {"model": "tests.tiny_segmenter:convolutions"}
    instances = {"model": "tests.tiny_instances:detector", "weights": "random"}
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
        for one, (mask, thing, stuff) in zip(row["objects"], expected, strict=True):
            assert np.array_equal(inside(one), mask)
            assert one["is_thing"] == (thing is not None)
            label = (
                ("sky", "grass", "road")[stuff or 0] if thing is None else things["objects"][thing]["label"]
            )
            assert one["label"] == label
            assert one["score"] == (None if thing is None else scores[thing])
            kinds.add(one["is_thing"])
    assert kinds == {True, False}


def test_the_job_chooses_which_classes_are_stuff() -> None:
    rows = predict(task(stuff=["sky"], score=1.0).load(Runtime("cpu")), pictures()).to_pylist()
    assert {one["label"] for row in rows for one in row["objects"]} == {"sky"}
    with pytest.raises(
        UserError, match=r"task\.stuff: the semantic network has no class 'skye' \(did you mean sky"
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


def test_aliases_are_given_once() -> None:
    with pytest.raises(ValueError, match=r"semantic\.aliases: expected task\.aliases instead"):
        task(semantic={"aliases": {"a": "sky"}})


@pytest.mark.parametrize("pool", ["inline", "local"])
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
    assert rows[0]["objects"] == alone[0]["objects"]
