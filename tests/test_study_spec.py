"""What a study is before anything is trained: its trials, and what is wrong with it."""

from __future__ import annotations

import pytest

from cnnbatch.errors import UserError
from cnnbatch.job import StudyJob, job_names, load_job, parse_job
from cnnbatch.study.trials import Trial, in_force, trials_of
from tests.test_study import study


def test_a_search_draws_the_same_again_and_within_its_ranges() -> None:
    section = {
        "search": {
            "train.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
            "train": {"strategy": ["head", "all"], "augment": [{"crop": 1.0}, {"crop": 0.5, "colour": 0.2}]},
        },
        "trials": 40,
    }
    trials = trials_of(study("photos", "out", section))
    assert trials == trials_of(study("photos", "out", section))
    assert [trial.name for trial in trials[:2]] == ["00", "01"]
    rates = [trial.settings["train.learning_rate"] for trial in trials]
    assert 1e-4 <= min(rates) < 1e-3
    assert 1e-2 < max(rates) <= 1e-1
    assert {trial.job.train.strategy for trial in trials} == {"head", "all"}
    assert {trial.job.train.augment.crop for trial in trials} == {1.0, 0.5}
    more = trials_of(study("photos", "out", {**section, "trials": 99}))
    assert more[:40] == trials


TEXT = """\
kind: study
task: {name: classify, model: resnet18}
input: photos
output: out
train: {epochs: 2}
study:
  vary: {train.strategy: [head, all]}
"""


RATE = "study.search.train.learning_rate"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["study.vary={train.stategy: [head]}"],
            r"a trial with .*train\.stategy=head is no training: train\.stategy: no such field; "
            r"did you mean train\.strategy\?",
        ),
        (
            ["study.vary.train.strategy=[haed]"],
            r'train\.strategy: expected .*, got "haed"; did you mean head',
        ),
        (["study.vary.train.strategy=head"], r"study\.vary"),
        (["study.vary={}"], "expected something that varies"),
        (["study.search.train.batch=[8]"], "expected either vary or search, got both"),
        (["study.vary={}", RATE + "={low: 2, high: 1}"], "expected low below high, got low 2 and high 1"),
        (["study.vary={}", RATE + "={low: 0, high: 1, log: true}"], "expected low above 0"),
        (["study.vary={}", RATE + "={low: -1, high: 1}"], r"train\.learning_rate=-1.0 is no training"),
        (
            ["study.cases={a: {trian: {epochs: 3}}}"],
            r"the case 'a' with train\.strategy=head is no training: trian: no such field; did you mean",
        ),
        (["study.lesson={train: {epochs: 0}}"], r"study\.lesson: train\.epochs: expected .*got 0"),
        (["study.folds=1"], "at least 2"),
        (["study=null"], "study"),
        (["study.sedes=2"], r"did you mean study\.seeds"),
    ],
)
def test_mistakes_in_a_study_are_said(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_job(TEXT, "job.yaml", overrides)


def test_a_study_is_read_from_yaml_and_its_trials_are_trainings() -> None:
    job = parse_job(TEXT, "job.yaml", ["study.folds=5", "study.seeds=3", "train.seed=7"])
    assert isinstance(job, StudyJob)
    trials = trials_of(job)
    assert [trial.name for trial in trials[:2]] == ["head-0", "head-1"]
    assert len(trials) == 10
    last: Trial = trials[-1]
    assert last.job.input.subset is not None
    assert (last.job.input.subset.folds, last.job.input.subset.fold, last.job.train.seed) == (5, 4, 11)
    assert str(last.job.output.url).endswith("out/trials/all-4")


@pytest.mark.parametrize("name", ["transfer_2x2", "transfer_curves", "sweep"])
def test_the_studies_that_come_along_have_a_lesson_of_fewer_trainings(name: str) -> None:
    assert name in job_names()
    fields = ["output=out", "lesson=true", *(["input=photos"] if name == "sweep" else [])]
    job = load_job(name, fields)
    assert isinstance(job, StudyJob)
    whole, lesson = trials_of(job), trials_of(in_force(job, True))
    assert len(lesson) < len(whole)
    assert all(trial.job.lesson for trial in lesson)


def test_the_table_of_two_by_two_is_what_the_course_has() -> None:
    trials = trials_of(load_job("transfer_2x2", ["output=out"]))  # type: ignore[arg-type]
    assert len(trials) == 4 * 5 * 5
    by_case = {trial.case: trial.job.input for trial in trials if trial.run == 4}
    kept = [(one.url, one.subset.per_class, one.subset.folds) for one in by_case.values() if one.subset]
    assert kept == [
        ("dataset:pets_sample", 20, 5),
        ("dataset:blood_cells#objects", 20, 5),
        ("dataset:cifar10", 1000, 5),
        ("dataset:camvid#patches=32", 1000, 5),
    ]
