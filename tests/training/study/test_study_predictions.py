"""Studies without training: cases that are predicted and judged, gone on with, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cnnbatch import report as report_writing
from cnnbatch.errors import UserError
from cnnbatch.inference import run as inference
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import MapJob, StudyJob, cases_of, parse_job, to_yaml
from cnnbatch.launch import launch, report
from cnnbatch.storage import Storage
from cnnbatch.terminal import screen
from cnnbatch.training.study.predictions import run as running
from cnnbatch.training.study.predictions.cases import read_case
from cnnbatch.training.study.predictions.pairs import shown_pairs
from tests import tiny, tiny_faces
from tests.tasks import test_faces

QUIET = RunOptions(quiet=True)
PAIRS = """a,b,same
ann/1.png,ann/2.png,1
bob/1.png,bob/2.png,1
cat/1.png,cat/2.png,1
ann/1.png,bob/1.png,0
bob/1.png,cat/1.png,0
cat/2.png,ann/2.png,0
"""
CASES = {
    "aligned": {},
    "turned": {"task": {"turn": 90}},
    "not found": {"task": {"min_size": 25}},
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a folder with ``people``, two pictures of each, and pairs; bob's faces are the largest."""
    sides = {"ann": 20, "bob": 30, "cat": 20}
    faces = {
        f"{who}/{number}.png": [(who, 40, 8 * number, side)]
        for who, side in sides.items()
        for number in (1, 2)
    }
    tiny_faces.write(tmp_path / "people", faces)
    (tmp_path / "pairs.csv").write_text(PAIRS)
    return tmp_path


def study(made: Path, **fields: Any) -> StudyJob:
    """Return a study of the cases above."""
    template = test_faces.job(made / "people", made / "out").model_dump(mode="json")
    data = {
        **template,
        "kind": "study",
        "evaluate": {"truth": str(made / "pairs.csv"), "slices": ["pose"]},
        "study": {"metric": "EER", "cases": CASES},
        **fields,
    }
    return StudyJob.model_validate(data)


def test_each_case_is_a_job_of_its_own_and_a_row(made: Path) -> None:
    summary = launch(study(made), QUIET)
    assert (summary.images, summary.total, summary.exit_status) == (3, 3, 0)
    rows = pq.read_table(made / "out" / "study.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["aligned", "turned", "not-found"]
    assert [row["EER"] for row in rows][:2] == [0, 0]
    assert [row["failed_pairs"] for row in rows] == [0, 0, 5]
    for row, case in zip(rows, cases_of(study(made)), strict=True):
        folder = made / "out" / "trials" / row["name"]
        judged = json.loads((folder / "evaluation.json").read_text())
        assert row["EER"] == judged["metrics"]["EER"]["value"]
        assert row["EER_low"] == judged["metrics"]["EER"]["low"]
        assert (folder / "report.html").exists()
        assert isinstance(case.job, MapJob)
    found = json.loads((made / "out" / "study.json").read_text())
    assert [one["case"] for one in found["cases"]] == list(CASES)
    assert found["cases"][2]["slices"]["pose"].keys() == {"frontal", "without a face"}


def test_a_study_says_how_far_its_case_is(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "PLAIN_EVERY_S", 0)
    launch(study(made))
    said = capsys.readouterr().err
    for number, case in enumerate(CASES, 1):
        assert f"{number}/3 {case}: predict 6/6 images" in said


def test_a_study_that_was_killed_goes_on_with_the_cases_that_are_left(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    real = inference.run

    def stops(job: MapJob, options: RunOptions) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(Path(job.output.url).name)
        return real(job, options)

    monkeypatch.setattr(running, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        launch(study(made), QUIET)
    assert len(pq.read_table(made / "out" / "study.parquet")) == 1
    first = made / "out" / "trials" / "aligned"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    again: list[str] = []

    def notes(job: MapJob, options: RunOptions) -> Any:
        again.append(Path(job.output.url).name)
        return real(job, options)

    monkeypatch.setattr(running, "run", notes)
    assert launch(study(made)).images == 2
    assert again == ["turned", "not-found"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said = capfd.readouterr()
    assert "3 cases, 1 of them finished before" in said.err
    assert "2/3 turned: EER 0.000" in said.err
    assert "failed_pairs" in said.out
    again.clear()
    assert launch(study(made), QUIET).images == 0
    assert again == []


def test_a_case_that_was_killed_goes_on_with_the_images_that_are_left(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts are there, and neither its evaluation nor its report."""
    real = report_writing.write_report

    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "write_report", stops)
    with pytest.raises(KeyboardInterrupt):
        launch(study(made), QUIET)
    parts = {path: path.stat().st_mtime_ns for path in made.rglob("part-*.parquet")}
    assert len(parts) == 2
    monkeypatch.setattr(inference, "write_report", real)
    assert launch(study(made), QUIET).images == 3
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_another_study_in_the_same_folder_is_refused(made: Path) -> None:
    launch(study(made), QUIET)
    others: list[tuple[dict[str, Any], str]] = [
        ({"study": {"metric": "EER", "cases": {"turned": {"task": {"turn": 15}}}}}, r"task\.turn: .*90.*15"),
        ({"input": {"url": str(made / "people"), "limit": 2}}, r"input\.limit"),
        (
            {"train": {}, "task": TINY_TRAINING, "evaluate": {}, "study": {"seeds": 2}},
            "holds another study",
        ),
    ]
    for fields, words in others:
        with pytest.raises(UserError, match=words):
            launch(study(made, **fields), QUIET)
    more = {**CASES, "upside down": {"task": {"turn": 180}}}
    assert launch(study(made, study={"metric": "EER", "cases": more}), QUIET).images == 1


TINY_TRAINING = {"name": "classify", "model": "tests.tiny:build", "weights": "random"}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            {"evaluate": {"truth": None, "slices": []}},
            r"bare: there is none for the images of .*evaluate\.truth",
        ),
        ({"evaluate": {"truth": "absent.csv"}}, r"bare: truth: expected a CSV file .*can't be read"),
        (
            {"evaluate": {"truth": "README.md"}},
            r"bare: evaluate\.truth: expected a CSV file with the columns a",
        ),
        ({"evaluate": {"slices": ["light"]}}, "bare: slices: expected columns of the list or of the output"),
        (
            {"task": {"name": "detect", "model": "ssd300_vgg16", "detector": None, "embedder": None}},
            "is no job of kind map",
        ),
    ],
)
def test_a_case_that_nothing_judges_is_refused_before_the_first_runs(
    made: Path, case: dict[str, Any], words: str
) -> None:
    with pytest.raises((UserError, ValueError), match=f"(?s){words}"):
        launch(study(made, study={"metric": "EER", "cases": {"first": {}, "bare": case}}), QUIET)
    assert not [*made.rglob("part-*.parquet")]


def test_a_list_of_faces_is_not_for_tasks_without_embeddings(tmp_path: Path) -> None:
    data = tiny.job(tmp_path, tmp_path / "out", {}).model_dump(mode="json")
    data = {name: value for name, value in data.items() if name not in ("train", "lesson", "kind")}
    job = MapJob.model_validate({**data, "evaluate": {"truth": "pairs.csv"}})
    with pytest.raises(UserError, match=r"evaluate\.truth: a list judges embeddings, and the task classify"):
        launch(job, QUIET)


def test_a_number_that_is_not_judged_is_said_and_the_study_goes_on_with_another(made: Path) -> None:
    section = {"metric": "ERR", "cases": CASES}
    with pytest.raises(UserError, match=r"study\.metric: expected a number .*got 'ERR'; did you mean EER\?"):
        launch(study(made, study=section), QUIET)
    assert launch(study(made), QUIET).images == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["study.seeds=3"], r"study\.seeds is for trainings, and this study has no train section"),
        (["study.folds=2"], r"study\.folds is for trainings"),
        (["study.show=curves"], r"study\.show is for trainings"),
        (["study.side_by_side=true"], r"study\.side_by_side is for trainings"),
        (["study.search.task.turn=[0,15]"], r"study\.search is for trainings"),
        (["study.cases.a.train.epochs=3"], r"the case 'a' says train, and the study has no such section"),
        (["study.cases.a.task.turn=200"], r"the case 'a' is no job of kind map: task\.turn: expected .*180"),
        (
            ["study.cases.a.task.align=boxes"],
            r"task\.align: expected similarity or box, .*did you mean box\?",
        ),
    ],
)
def test_mistakes_in_a_study_without_training_are_said(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_job(TEXT, "job.yaml", overrides)


TEXT = """\
kind: study
task: {name: faces}
input: photos
output: out
study:
  metric: EER
  cases: {a: {}, b: {task: {align: box}}}
"""


def test_a_study_may_vary_fields_and_is_read_back_as_it_was() -> None:
    changes = ["study.cases={}", "study.vary.task.turn=[0,90]", "study.vary.task.align=[box]"]
    job = parse_job(TEXT, "job.yaml", changes)
    assert isinstance(job, StudyJob)
    assert [one.name for one in cases_of(job)] == ["0-box", "90-box"]
    text = to_yaml(job)
    again = parse_job(text, "job.yaml")
    assert isinstance(again, StudyJob)
    assert again.train is None
    assert [one.job.task for one in cases_of(again)] == [one.job.task for one in cases_of(job)]
    assert to_yaml(again) == text


def test_the_page_has_all_cases_and_their_slices_and_is_written_again(made: Path) -> None:
    job = study(made, task={**study(made).task.model_dump(mode="json"), "crop": True})
    launch(job, QUIET)
    place = made / "out" / "report.html"
    page = place.read_text()
    for name in ("aligned", "turned", "not-found"):
        assert f'href="trials/{name}/report.html"' in page
    for words in (
        "EER by pose",
        "no face",
        "failed_pairs",
        "equal error rate",
        "The same pairs in every case",
    ):
        assert words in page
    assert "<script" not in page
    place.unlink()
    report(str(made / "out"), Storage())
    assert place.read_text() == page


def test_pairs_are_shown_with_their_crops_distances_and_verdicts(made: Path) -> None:
    job = study(made, task={**study(made).task.model_dump(mode="json"), "crop": True})
    launch(job, QUIET)
    cases = [case for case in map(read_case, cases_of(job)) if case is not None]
    shown = shown_pairs(cases)
    assert [pair.same for pair in shown] == [True] * 3 + [False] * 3
    table = pq.read_table(made / "out" / "trials" / "turned" / "evaluation" / "pairs.parquet").to_pylist()
    scores = {(row["a"], row["b"]): row["score"] for row in table}
    for pair in shown:
        aligned, turned, lost = pair.cases
        assert turned.distance == f"distance {-scores[pair.first, pair.second]:.3f}"
        assert (aligned.accepted, aligned.is_right) == (pair.same, True)
        assert all(crop.startswith("data:image/jpeg;base64,") for crop in aligned.crops)
        bobs = ["bob" in name for name in (pair.first, pair.second)]
        assert [bool(crop) for crop in lost.crops] == bobs
        if not all(bobs):
            assert (lost.distance, lost.accepted, lost.is_right) == ("no face", False, not pair.same)
    strangers = [float(pair.cases[0].distance.split()[1]) for pair in shown[3:]]
    assert strangers == sorted(strangers)
