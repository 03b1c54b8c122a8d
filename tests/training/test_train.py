"""A training end to end: a folder of labelled pictures in, a tested model out that other jobs use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cnnbatch
from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, TrainJob, parse_job
from cnnbatch.launch import launch
from cnnbatch.training import loop
from cnnbatch.training.distributed import Team
from cnnbatch.training.worker import precision_for
from tests import tiny
from tests.training.trained import launch_twice, metrics_of, model_of, require_same, weights_of

QUIET = RunOptions(quiet=True)
USED = {"name": "classify", "model": "tests.tiny:build"}
"""A network of another package, which a job names itself; a trained folder is its weights."""


def test_a_folder_of_labelled_pictures_becomes_a_tested_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 40), tmp_path / "out"
    summary = launch(tiny.job(folder, out))
    said = capfd.readouterr()
    assert summary.exit_status == 0
    about = model_of(out)
    assert about["classes"] == ["blue", "green", "red"]
    assert about["validation"]["accuracy"] == 1
    assert about["validation"]["interval"][0] < 1
    images = about["data"]["train"] + about["data"]["validation"] + summary.total
    assert images == 120
    rows = metrics_of(out)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    # The test images' rows are those of any job, and are judged.
    predicted = cnnbatch.open(str(out)).arrow(["key", "label"]).to_pylist()
    assert all(row["label"] == row["key"].split("/")[0] for row in predicted)
    assert json.loads((out / "evaluation.json").read_text())["metrics"]["top1"]["value"] == 1
    page = (out / "report.html").read_text()
    assert '<h2 id="training">Training</h2>' in page
    assert "the job says so" in page
    assert "epoch 4/4" in said.err
    assert "top1" in said.out


@pytest.mark.slow
def test_the_trained_folder_is_a_model_for_other_jobs(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 40), tmp_path / "out"
    launch(tiny.job(folder, out), QUIET)
    others = tiny.colours(tmp_path / "others", 5)
    spec = MapJob.model_validate(
        {
            "task": {**USED, "weights": str(out), "probabilities": True},
            "input": {"url": str(others), "format": "folders"},
            "output": str(tmp_path / "labels"),
            "compute": {"pool": "inline"},
        }
    )
    assert run(spec, QUIET).exit_status == 0
    rows = cnnbatch.open(str(tmp_path / "labels")).arrow(["key", "label", "probabilities"]).to_pylist()
    assert all(row["label"] == row["key"].split("/")[0] for row in rows)
    # A training that begins with it knows its architecture, too.
    again = tiny.job(
        folder, tmp_path / "again", {"strategy": "head", "epochs": 1}, task={"weights": str(out)}
    )
    launch(again, QUIET)
    assert model_of(tmp_path / "again")["architecture"]["model"] == "tests.tiny:build"


def test_a_second_call_finds_nothing_to_do_and_another_job_is_refused(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 10), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": 1}), QUIET)
    before = weights_of(out)
    assert launch(tiny.job(folder, out, {"epochs": 1}), QUIET).images == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(out).items())
    with pytest.raises(UserError, match=r"train\.epochs: the output has 1, this job has 2"):
        launch(tiny.job(folder, out, {"epochs": 2}), QUIET)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "accumulate"), [(3, 1), (9, 1), (8, 2)])
def test_what_was_interrupted_goes_on_to_the_same_result(tmp_path: Path, step: int, accumulate: int) -> None:
    folder = tiny.colours(tmp_path / "colours", 40)
    settings = {
        "ema": 0.5,
        "augment": {"mixup": 0.2, "colour": 0.2},
        "checkpoint_s": 1e-9,
        "accumulate": accumulate,
    }
    launch(tiny.job(folder, tmp_path / "whole", settings), QUIET)
    out = tmp_path / "broken"
    launch_twice(lambda: tiny.job(folder, out, settings), step)
    require_same(tmp_path / "whole", out)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    folder = tiny.colours(tmp_path / "colours", 20)
    found = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        launch(tiny.job(folder, tmp_path / name, {"seed": seed, "epochs": 1}), QUIET)
        found.append(weights_of(tmp_path / name)["5.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["head", "last_blocks", "all", "scratch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adadelta", "adamw", "muon"])
def test_only_what_the_strategy_says_is_tuned(tmp_path: Path, strategy: str, optimizer: str) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 8), tmp_path / "out"
    settings = {"strategy": strategy, "optimizer": optimizer, "epochs": 1, "learning_rate": "auto"}
    launch(
        tiny.job(
            folder,
            out,
            settings,
            task={}
            if strategy != "scratch"
            else {"model": "squeezenet1_1"} | {"preprocessing": {"resize": 32, "crop": 32}},
        ),
        QUIET,
    )
    if strategy == "scratch":
        assert model_of(out)["frozen"] == []
        return
    fresh, learned = tiny.build().module.state_dict(), weights_of(out)
    changed = {
        name
        for name in fresh
        if fresh[name].shape != learned[name].shape or not torch.equal(fresh[name], learned[name])
    }
    blocks = {name.rsplit(".", 1)[0] for name in changed if not name.startswith("5")}
    expected = {"head": set(), "last_blocks": {"1.1"}, "all": {"0.0", "0.1", "1.0", "1.1"}}[strategy]
    assert blocks == expected


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 20), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": 12, "patience": 1}), QUIET)
    about = model_of(out)
    assert len(about["epochs"]) < 12
    assert about["validation"]["accuracy"] == max(row["accuracy"] for row in about["epochs"])


def test_pictures_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 40, broken=1), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": 1, "test": 0}, max_failed=0.1), QUIET)
    about = model_of(out)
    assert about["failed"]["undecodable"] >= 1
    assert "0000.png" in about["examples"][0]
    assert (
        sum(row["images"] for row in metrics_of(out))
        == about["data"]["train"] - about["failed"]["undecodable"]
    )


@pytest.mark.parametrize(
    ("each", "fields", "words"),
    [
        ({"red": 8, "green": 8}, {"task": {"classes": ["red", "blue"]}}, r"none of 2 classes: 'green'"),
        ({"red": 8, "green": 8}, {"task": {"classes": ["red", "green", "blue"]}}, "no image trains 'blue'"),
        ({"red": 12, "green": 1}, {}, "two images at least.*'green' has one"),
        ({"red": 8}, {"input": {"label": "(nothing)"}}, "expected a class in the images' keys"),
        (
            {"red": 8, "green": 8},
            {"max_failed": 0.0, "broken": 3},
            "can't be learned from, more than max_failed=0",
        ),
        (
            {"red": 8, "green": 8},
            {"train": {"learning_rate": 1e30}},
            r"not a number at step \d+ of epoch \d+: .*learning rate .*images: green/",
        ),
        ({"red": 8, "green": 8}, {"train": {"strategy": "as_is"}}, "as_is needs a network that knows all"),
    ],
)
def test_what_cannot_be_learned_is_said(
    tmp_path: Path, each: dict[str, int], fields: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "colours"
    for name, count in each.items():
        tiny.colours(folder, count, (name,), fields.get("broken", 0))
    fields.pop("broken", None)
    if "input" in fields:
        fields["input"] = {"url": str(folder), **fields["input"]}
    train = {"optimizer": "sgd", "epochs": 8, "clip": None, **fields.pop("train", {})}
    with pytest.raises(UserError, match="(?s)" + words):
        launch(tiny.job(folder, tmp_path / "out", train, **fields), QUIET)


def test_a_checkpoint_of_another_architecture_is_not_lost(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 10), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": 1}), QUIET)
    (checkpoint,) = (out / "_job" / "training" / "checkpoints").glob("0*.pt")
    other = tmp_path / "other"
    place = other / "_job" / "training" / "checkpoints" / checkpoint.name
    place.parent.mkdir(parents=True)
    place.write_bytes(checkpoint.read_bytes())
    small = {"model": "squeezenet1_1", "weights": "random", "preprocessing": {"resize": 32, "crop": 32}}
    with pytest.raises(UserError, match="another network"):
        launch(tiny.job(folder, other, {"epochs": 2}, task=small), QUIET)
    assert place.read_bytes() == checkpoint.read_bytes()


def test_parts_come_from_folders_where_they_are_so_named(tmp_path: Path) -> None:
    for part, count in (("train", 12), ("val", 4), ("test", 3)):
        tiny.colours(tmp_path / "set" / part, count)
    out = tmp_path / "out"
    summary = launch(tiny.job(tmp_path / "set", out, {"epochs": 1}), QUIET)
    data = model_of(out)["data"]
    assert (data["train"], data["validation"], summary.total) == (36, 12, 9)
    assert data["how"] == "by the folders test, train, validation"


def test_a_job_of_kind_train_is_read_from_yaml() -> None:
    text = "kind: train\ntask: {name: classify, model: resnet18}\ninput: photos\noutput: out\n"
    job = parse_job(text, "job.yaml", ["train.epochs=3", "train.augment.mixup=0.2"])
    assert isinstance(job, TrainJob)
    assert (job.train.epochs, job.train.augment.mixup) == (3, 0.2)
    assert job.train.strategy == "auto"
    with pytest.raises(UserError, match="the task detect does not train|train"):
        parse_job(text.replace("kind: train", "kind: map") + "train: {}\n", "job.yaml")


def test_the_loop_knows_no_task() -> None:
    source = Path(loop.__file__).read_text()
    assert "classif" not in source
    assert "detect" not in source


def test_labels_known_to_the_network_need_no_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "two", tmp_path / "out"
    tiny.colours(folder, 10, ("red", "blue"))
    (folder / "red").rename(folder / "Warm")
    (folder / "blue").rename(folder / "cold")
    launch(tiny.job(folder, out, {"strategy": "auto", "epochs": "auto"}))
    assert "the network knows all of these classes already" in capfd.readouterr().err
    about = model_of(out)
    assert about["strategy"] == "as_is"
    assert about["classes"] == ["Warm", "cold"]
    assert torch.equal(weights_of(out)["5.weight"], tiny.build().module.state_dict()["5.weight"])


@pytest.mark.slow
def test_a_head_on_earlier_features_is_a_model_without_the_rest(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 40), tmp_path / "out"
    launch(tiny.job(folder, out, {"strategy": "head", "features": "0.1", "learning_rate": 0.1}), QUIET)
    about = model_of(out)
    assert about["architecture"]["features"] == "0.1"
    assert (about["tuned"], about["frozen"]) == (["head"], ["body.0.0", "body.0.1"])
    assert {name.rpartition(".")[0] for name in weights_of(out)} == {"body.0.0", "body.0.1", "head"}
    frozen = tiny.build().module.state_dict()
    assert torch.equal(weights_of(out)["body.0.1.running_var"], frozen["0.1.running_var"])
    assert json.loads((out / "evaluation.json").read_text())["metrics"]["top1"]["value"] > 0.9
    # It is a model for other trainings, which don't cut it again.
    again = {"strategy": "all", "epochs": 1}
    launch(tiny.job(folder, tmp_path / "again", again, task={"weights": str(out)}), QUIET)
    assert model_of(tmp_path / "again")["architecture"]["features"] == "0.1"
    launch(
        tiny.job(folder, tmp_path / "auto", {"strategy": "auto", "epochs": 1}, task={"weights": str(out)}),
        QUIET,
    )
    assert model_of(tmp_path / "auto")["depths"] == []
    twice = {"strategy": "head", "epochs": 1, "features": "body.0.0"}
    with pytest.raises(UserError, match=r"train\.features: .* reads the block 0\.1 already"):
        launch(tiny.job(folder, tmp_path / "twice", twice, task={"weights": str(out)}), QUIET)


def test_only_a_head_reads_earlier_features(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected strategy head, got all"):
        tiny.job(tmp_path, tmp_path, {"strategy": "all", "features": "0.1"})


def test_auto_looks_at_several_depths_and_keeps_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.training.strategy_rule.QUARTERS", 2)
    folder, out = tiny.colours(tmp_path / "colours", 30), tmp_path / "out"
    launch(tiny.job(folder, out, {"strategy": "auto", "epochs": 1}), QUIET)
    about = model_of(out)
    blocks = ["0.0", "0.1", "1.0", "1.1"]
    assert [one["block"] for one in about["depths"]] == blocks
    assert about["strategy"] == "head"
    assert "linear probes on features of its second quarter" in about["why"]
    rows = cnnbatch.open(str(out / "_job" / "training" / "features")).arrow(["key", "embedding"]).to_pylist()
    assert {len(row["embedding"]) for row in rows} == {8 + 8 + 16 + 16}
    page = (out / "report.html").read_text()
    assert "Linear probe by layer" in page


def test_precision_is_what_the_processor_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.inference.worker.devices.has_bf16", lambda device: True)
    plain, separable = tiny.build().module, nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    assert precision_for("auto", "cpu", plain) == "bf16"
    assert precision_for("auto", "cpu", separable) == "fp32"
    assert precision_for("auto", "cuda:0", separable) == "bf16"
    assert precision_for("bf16", "cpu", separable) == "bf16"
    monkeypatch.setattr("cnnbatch.inference.worker.devices.has_bf16", lambda device: False)
    assert precision_for("auto", "cpu", plain) == "fp32"


def test_an_input_of_a_part_is_an_input_for_any_job(tmp_path: Path) -> None:
    folder = tiny.colours(tmp_path / "colours", 10)
    chosen = Input.model_validate({"url": str(folder), "subset": {"part": "validation", "validation": 0.5}})
    from cnnbatch.sources import open_source
    from cnnbatch.storage import Storage

    count = sum(1 for _ in open_source(chosen, Storage()).refs())
    assert 0 < count < 30


def test_a_lesson_is_short_and_shows_the_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.training.data.dataset.LESSON_IMAGES", 30)
    folder, out = tiny.colours(tmp_path / "colours", 20), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": "auto", "strategy": "last_blocks"}, lesson=True), QUIET)
    about = model_of(out)
    assert len(about["epochs"]) == 5
    assert about["data"]["train"] == 30
    assert "since it is a lesson" in about["data"]["how"]
    shown = json.loads((out / "_job" / "training" / "inside.json").read_text())
    assert len(shown["pictures"]) == 12
    moved = {one["layer"]: one["change"] > 0 for one in shown["layers"]}
    assert moved == {"0.0": False, "1.0": False, "5": True}
    page = (out / "report.html").read_text()
    assert "as the network got them" in page
    assert "From 0.0 to 5; of 3 layers 2 stayed as they were" in page


def test_a_picture_that_several_workers_met_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Team, "gather", lambda team, values: [*values, *values])
    folder, out = tiny.colours(tmp_path / "colours", 40, broken=1), tmp_path / "out"
    launch(tiny.job(folder, out, {"epochs": 2, "test": 0}, max_failed=0.04), QUIET)
    assert sum(model_of(out)["failed"].values()) == 3
