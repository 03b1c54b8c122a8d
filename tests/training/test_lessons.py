"""Lessons: a training keeps what happens inside its network, and its page shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.inference.run import RunOptions
from cnnbatch.launch import launch
from tests import tiny_instances, tiny_maps

QUIET = RunOptions(quiet=True)


def strips_of(out: Path) -> list[dict[str, Any]]:
    inside: dict[str, Any] = json.loads((out / "_job" / "training" / "inside.json").read_text())
    strips: list[dict[str, Any]] = inside["strips"]
    page = (out / "report.html").read_text()
    assert all(one["title"] in page and one["rows"][0][-1]["picture"] in page for one in strips)
    return strips


@pytest.mark.slow
def test_a_segmenter_shows_what_its_maps_contribute(tmp_path: Path) -> None:
    tiny_maps.folders(tmp_path / "made", 12, 6)
    task = {"model": "fcn8s_mobilenet_v2", "weights": "random", "size": (64, 96)}
    settings = {"epochs": 1, "batch": 4, "augment": {"crop_size": (64, 64)}}
    job = tiny_maps.job(tmp_path / "made", tmp_path / "out", settings, task=task, lesson=True)
    assert launch(job, QUIET).exit_status == 0
    depths, parts = strips_of(tmp_path / "out")
    assert len(depths["rows"]) == len(parts["rows"]) == 4
    assert [one["name"].split(",")[0] for one in depths["rows"][0]] == [
        "input",
        *(f"stride {stride}" for stride in (2, 4, 8, 16, 32)),
    ]
    assert parts["rows"][0][0]["name"].startswith("stride 32 alone: ")
    assert parts["rows"][0][-1]["name"] == "ground truth"
    assert {one["name"] for one in parts["legend"]} <= set(tiny_maps.CLASSES)


@pytest.mark.slow
def test_a_mask_rcnn_shows_the_way_to_a_mask(tmp_path: Path) -> None:
    truth = tiny_instances.write_coco(tmp_path / "photos", 12)
    job = tiny_instances.job(truth, tmp_path / "out", {"epochs": 1, "batch": 4, "proposals": 16}, lesson=True)
    assert launch(job, QUIET).exit_status == 0
    (strip,) = strips_of(tmp_path / "out")
    assert strip["title"] == "From a proposal to a mask"
    assert {len(row) for row in strip["rows"]} == {5}


@pytest.mark.slow
def test_a_network_of_one_map_shows_nothing_more(tmp_path: Path) -> None:
    tiny_maps.folders(tmp_path / "made", 8, 4)
    job = tiny_maps.job(tmp_path / "made", tmp_path / "out", {"epochs": 1}, lesson=True)
    assert launch(job, QUIET).exit_status == 0
    assert strips_of(tmp_path / "out") == []
