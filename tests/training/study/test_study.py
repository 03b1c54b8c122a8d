"""Studies: trials that are ordinary trainings, gone on with where they were, and what they say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import StudyJob, TrainJob, trials_of
from cnnbatch.launch import launch, report
from cnnbatch.storage import Storage
from cnnbatch.tasks.classify import Classify
from cnnbatch.training import run as training
from cnnbatch.training.study import run as running
from cnnbatch.training.study import trial
from cnnbatch.training.study.curves import Point, figures, mean_course, points
from cnnbatch.training.study.pairing import RunOutcomes, difference
from tests import tiny

QUIET = RunOptions(quiet=True)


def template(photos: Path | str, out: Path | str, **fields: Any) -> dict[str, Any]:
    data = tiny.job(photos, out, {"epochs": 2}, compute={"backend": "eager"}).model_dump(mode="json")
    return {**data, "kind": "study", **fields}


def study(photos: Path | str, out: Path | str, section: dict[str, Any], **fields: Any) -> StudyJob:
    return StudyJob.model_validate(template(photos, out, study=section, **fields))


def numbers(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "study.json").read_text())
    return found


CASES = {
    "small and similar": {"input": {"subset": {"per_class": 8, "test": 0}}},
    "Large": {"input": {"subset": {"test": 0.3}}},
}
QUADRANTS = {
    "cases": CASES,
    "vary": {"train.strategy": ["all", "auto"]},
    "seeds": 2,
    "folds": 2,
    "metric": "macro_accuracy",
    "show": "quadrants",
}


@pytest.fixture(scope="module")
def quadrants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a study of two cases, two strategies and two runs of each."""
    folder = tmp_path_factory.mktemp("study")
    photos = tiny.colours(folder / "colours", 20)
    assert launch(study(photos, folder / "out", QUADRANTS), QUIET).total == 8
    return folder / "out"


@pytest.mark.slow
def test_a_study_is_a_training_for_each_combination_and_run(quadrants: Path) -> None:
    rows = pq.read_table(quadrants / "study.parquet").to_pylist()
    assert [row["name"] for row in rows][:5] == [
        "small-and-similar-all-0",
        "small-and-similar-all-1",
        "small-and-similar-auto-0",
        "small-and-similar-auto-1",
        "large-all-0",
    ]
    assert [row["fold"] for row in rows] == [0, 1] * 4
    assert [row["seed"] for row in rows] == [0, 1] * 4
    for row in rows:
        place = quadrants / "trials" / row["name"]
        about = json.loads((place / "model.json").read_text())
        judged = json.loads((place / "evaluation.json").read_text())
        assert row["strategy"] == about["strategy"]
        assert row["validation_macro_accuracy"] == about["validation"]["macro_accuracy"]
        assert row["test_recall_macro"] == judged["metrics"]["recall_macro"]["value"]
        assert row["test_top1_low"] == judged["metrics"]["top1"]["low"]
        assert (
            row["steps"]
            == max(one["step"] for one in pq.read_table(place / "metrics.parquet").to_pylist()) + 1
        )
        assert (place / "report.html").exists()
    small, large = rows[0], rows[4]
    assert small["train_images"] + small["validation_images"] == 24
    assert small["test_images"] == 36
    assert large["train_images"] + large["validation_images"] + large["test_images"] == 60


@pytest.mark.slow
def test_its_numbers_are_those_of_its_trials(quadrants: Path) -> None:
    rows = pq.read_table(quadrants / "study.parquet").to_pylist()
    found = numbers(quadrants)
    for group in found["groups"]:
        some = [row for row in rows if row["name"] in group["trials"]]
        assert len(some) == 2
        weights = [row["validation_images"] for row in some]
        assert group["validation"] == pytest.approx(
            np.average([row["validation_macro_accuracy"] for row in some], weights=weights)
        )
        assert group["test"] == pytest.approx(np.mean([row["test_recall_macro"] for row in some]))
    assert [one["case"] for one in found["verdicts"]] == list(CASES)
    by_name = {(group["case"], group["settings"]["train.strategy"]): group for group in found["groups"]}
    for one in found["verdicts"]:
        best, auto = by_name[one["case"], one["best"]["train.strategy"]], by_name[one["case"], "auto"]
        assert one["best"]["train.strategy"] != "auto"
        assert one["difference"]["value"] == pytest.approx(auto["test"] - best["test"])
        assert one["holds"] is (one["difference"]["value"] >= -0.01 or one["difference"]["high"] >= 0)


def test_its_page_leads_to_the_trials_and_says_what_auto_is_worth(quadrants: Path) -> None:
    page = (quadrants / "report.html").read_text()
    assert 'href="trials/large-all-0/report.html"' in page
    assert "was best on validation" in page
    assert "auto as good as the best" in page
    assert all(f'<th scope="col">{name}</th>' in page for name in ("fold", "least", "most", "took"))
    assert "<script" not in page
    (quadrants / "report.html").unlink()
    report(str(quadrants), Storage())
    assert (quadrants / "report.html").read_text() == page


@pytest.mark.slow
def test_an_interrupted_study_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 8), tmp_path / "out"
    section = {"vary": {"train.strategy": ["head", "all"]}, "seeds": 2}
    trained: list[str] = []
    real = training.train

    def stops(job: TrainJob, options: RunOptions) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(str(job.output.url))
        return real(job, options)

    monkeypatch.setattr(trial, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        launch(study(photos, out, section))
    assert len(pq.read_table(out / "study.parquet")) == 2
    assert "2/4 head-1: accuracy" in capfd.readouterr().err
    again: list[str] = []

    def notes(job: TrainJob, options: RunOptions) -> Any:
        again.append(str(job.output.url))
        return real(job, options)

    monkeypatch.setattr(trial, "train", notes)
    summary = launch(study(photos, out, section))
    said = capfd.readouterr()
    assert "4 trainings, 2 of them finished before" in said.err
    assert "strategy" not in said.err.replace("train.strategy", "")  # What a trial says itself is not shown.
    assert (summary.images, summary.total) == (2, 4)
    assert [Path(url).name for url in again] == ["all-0", "all-1"]
    assert "validation" in said.out
    with pytest.raises(UserError, match=r"holds another training:\n.*train\.epochs"):
        launch(study(photos, out, section, train={"epochs": 1, "learning_rate": 0.02, "batch": 16}))


def test_losses_of_a_few_trainings_are_in_one_chart(tmp_path: Path) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 8), tmp_path / "out"
    section = {"cases": {"slow": {"train": {"learning_rate": 0.001}}, "fast": {}}}
    launch(study(photos, out, section, train={"epochs": 3, "learning_rate": 0.02, "batch": 8}), QUIET)
    ends = []
    for name in ("slow", "fast"):
        rows = pq.read_table(out / "trials" / name / "metrics.parquet").to_pylist()
        ends.append(f"{name} {rows[-1]['loss']:.3g}")
    page = (out / "report.html").read_text()
    chart = page[page.index('id="losses"') : page.index("</section>", page.index('id="losses"'))]
    assert chart.count('<path class="line-') == 2
    assert f"At the end: {', '.join(ends)}" in chart


def test_a_lesson_is_the_study_otherwise_and_its_page_says_so(tmp_path: Path) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 8), tmp_path / "out"
    section = {
        "vary": {"train.strategy": ["head", "all"]},
        "seeds": 3,
        "lesson": {"study": {"seeds": 1}, "train": {"epochs": 1}},
    }
    assert launch(study(photos, out, section, lesson=True), QUIET).total == 2
    page = (out / "report.html").read_text()
    assert "Changed for the lesson: study.seeds: 1; train.epochs: 1." in page
    assert numbers(out)["cut"] == {"study.seeds": 1, "train.epochs": 1}


@pytest.mark.slow
def test_courses_are_the_trials_and_begin_before_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 16), tmp_path / "out"
    job = study(
        photos,
        out,
        {
            "vary": {"train": {"strategy": ["all", "head"]}, "input.subset.share": [0.5, 1.0]},
            "show": "curves",
        },
        train={"epochs": 3, "judge_first": True, "batch": 8, "learning_rate": 0.02},
    )
    launch(job)
    assert "slope a step" in capfd.readouterr().out
    courses = numbers(out)["courses"]
    assert [one["settings"]["input.subset.share"] for one in courses] == [0.5, 1.0, 0.5, 1.0]
    for one in courses:
        name = "-".join(
            str(value)
            for value in (f"{one['settings']['train.strategy']}-{one['settings']['input.subset.share']:g}",)
        )
        rows = pq.read_table(out / "trials" / name / "metrics.parquet").to_pylist()
        judged = [row for row in rows if row["accuracy"] is not None]
        assert (judged[0]["step"], judged[0]["epoch"], len(judged)) == (-1, -1, 4)
        assert [one["before"], one["start"], one["end"]] == [judged[n]["accuracy"] for n in (0, 1, 3)]
        steps = judged[1]["step"] + 1
        assert one["slope"] == pytest.approx((judged[1]["accuracy"] - judged[0]["accuracy"]) / steps)
    page = (out / "report.html").read_text()
    assert "over seconds" in page
    # One run of each, and no folds: these columns would be empty.
    assert not [name for name in ("fold", "least", "most") if f'<th scope="col">{name}</th>' in page]


def test_figures_of_a_course_are_those_of_its_table() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": -1, "step": -1, "accuracy": 0.1},
        {"epoch": 0, "step": 0, "images": 10, "images_per_second": 5.0},
        {"epoch": 0, "step": 1, "images": 10, "images_per_second": 10.0, "accuracy": 0.5},
        {"epoch": 1, "step": 2, "images": 10, "images_per_second": 10.0},
        {"epoch": 1, "step": 3, "images": 10, "images_per_second": 20.0, "accuracy": 0.7},
    ]
    names = ("epoch", "step", "images", "images_per_second", "accuracy")
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    course = points(table, "accuracy")
    assert course == [Point(0, 0.0, 0.1), Point(2, 2.0, 0.5), Point(4, 3.0, 0.7)]
    found = figures(course, equal_to=0.6)
    assert found.slope == pytest.approx(0.2)
    assert (found.before, found.start, found.end) == (0.1, 0.5, 0.7)
    assert (found.equal_steps, found.equal_seconds) == (4, 3.0)
    assert figures(course, equal_to=0.8).equal_seconds is None
    assert figures([], 0.5).end is None
    both = mean_course([course, [Point(0, 0.0, 0.3), Point(2, 4.0, 0.7)]])
    assert list(both[1]) == pytest.approx([2, 3.0, 0.6])
    assert len(both) == 2
    assert points(table, "loss") == []


@pytest.mark.parametrize("macro", [False, True])
def test_the_paired_interval_is_the_bootstraps(macro: bool) -> None:
    rng = np.random.default_rng(0)
    classes = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    one = (rng.random((3, 400)) < 0.8).mean(0)
    other = np.where(rng.random(400) < 0.7, one, (rng.random((3, 400)) < 0.75).mean(0))
    keys = [f"{number}.png" for number in range(400)]
    found = difference(RunOutcomes(keys, classes, one), RunOutcomes(keys, classes, other), macro)

    def gain(places: Any) -> float:
        gains = (one - other)[places]
        if not macro:
            return float(gains.mean())
        return float(np.mean([gains[classes[places] == name].mean() for name in range(3)]))

    drawn = [gain(rng.integers(0, 400, 400)) for _ in range(4000)]
    assert found is not None
    assert found.value == pytest.approx(gain(np.arange(400)))
    spread = float(np.std(drawn))
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.3 * spread)
    assert (
        difference(RunOutcomes(keys[1:], classes[1:], one[1:]), RunOutcomes(keys, classes, other), macro)
        is None
    )


@pytest.mark.slow
def test_a_search_goes_on_without_trials_that_can_not_be_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 8), tmp_path / "out"
    section = {"search": {"train.learning_rate": [1e30, 0.02]}, "trials": 4}
    job = study(photos, out, section, train={"epochs": 2, "optimizer": "sgd", "clip": None, "batch": 8})
    rates = [trial.settings["train.learning_rate"] for trial in trials_of(job)]
    assert set(rates) == {1e30, 0.02}
    summary = launch(job)
    said = capfd.readouterr()
    assert summary.failed == {"training": rates.count(1e30)}
    assert "failed: the loss is not a number" in said.err
    assert "best: train.learning_rate=0.02" in said.out
    assert launch(job, QUIET).images == rates.count(1e30)  # Only what failed is tried again.
    bad = study(photos, tmp_path / "bad", {"search": {"train.learning_rate": [1e30]}, "trials": 2})
    bad = bad.model_copy(update={"train": job.train})
    with pytest.raises(UserError, match="no trial could be trained: the loss is not a number"):
        launch(bad, QUIET)


@pytest.mark.slow
def test_what_varies_is_trained_side_by_side_where_the_study_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnbatch.training.study import sweep

    given: list[str] = []

    def side_by_side(trials: Any, output: Any, note: Any) -> Any:
        given.extend(trial.name for trial in trials)
        return (trial.finish(sweep._inside(one, {"pool": "inline"}), output, True) for one in trials)

    monkeypatch.setattr(sweep, "side_by_side", side_by_side)
    photos = tiny.colours(tmp_path / "colours", 8)
    section = {"vary": {"train.learning_rate": [0.01, 0.02]}, "side_by_side": True}
    job = study(photos, tmp_path / "out", section)
    launch(job.model_copy(update={"compute": job.compute.model_copy(update={"pool": "ray"})}), QUIET)
    assert given == ["0.01", "0.02"]


@pytest.mark.slow
def test_a_search_on_ray_tune_goes_on_with_what_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos, out = tiny.colours(tmp_path / "colours", 8), tmp_path / "out"
    section = {"search": {"train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}}
    compute = {"pool": "ray", "device": "cpu", "precision": "fp32"}
    first = study(photos, out, {**section, "trials": 1}, compute=compute)
    assert launch(first, QUIET).images == 1
    assert capfd.readouterr().out == ""
    summary = launch(study(photos, out, {**section, "trials": 3}, compute=compute), QUIET)
    assert (summary.images, summary.total) == (2, 3)
    rows = pq.read_table(out / "study.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["0", "1", "2"]
    assert all(row["validation_accuracy"] > 0 for row in rows)


def test_all_absent_sets_are_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNBATCH_DATA", str(tmp_path))
    monkeypatch.setenv("CNNBATCH_CACHE", str(tmp_path / "cache"))
    cases = {"pets": {"input": "dataset:pets_sample"}, "cells": {"input": "dataset:blood_cells#objects"}}
    job = study("photos", tmp_path / "out", {"cases": cases, "vary": {"train.strategy": ["head", "all"]}})
    with pytest.raises(
        UserError, match=r"(?s)nothing was trained.*pets: .*is not here.*cells: .*is not here"
    ):
        launch(job, QUIET)
    assert not (tmp_path / "out" / "trials").exists()


def test_a_study_without_weights_or_images_stops_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tiny.colours(tmp_path / "colours", 6)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(running, "finish", lambda *_, **__: pytest.fail("it trains"))

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    template_of = {"task": {"name": "classify", "model": "squeezenet1_1"}}
    section = {"vary": {"train.strategy": ["scratch", "head"]}, "side_by_side": True}
    with pytest.raises(EnvironmentFault, match="nothing was trained: task.weights: these weights are not"):
        launch(study(photos, tmp_path / "out", section, **template_of), QUIET)
    assert not (tmp_path / "out" / "trials").exists()
    assert not (tmp_path / "out" / "_job" / "job.yaml").exists()
    lacking = {"cases": {"here": {}, "gone": {"input": str(tmp_path / "gone")}}}
    with pytest.raises(UserError, match="(?s)the study lacks images.*gone"):
        launch(study(photos, tmp_path / "out", lacking), QUIET)
    bad = {"cases": {"here": {}, "bad": {"task": {"model": str(tmp_path)}}}}
    with pytest.raises(UserError, match="nothing was trained: task.model"):
        launch(study(photos, tmp_path / "out", bad), QUIET)


def test_a_study_from_scratch_needs_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Classify, "require_weights", lambda task: pytest.fail("asked for weights"))
    section = {"vary": {"train.strategy": ["scratch"]}, "seeds": 2}
    running.require_weights(trials_of(study("photos", tmp_path / "out", section)))
