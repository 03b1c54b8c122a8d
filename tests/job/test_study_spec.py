"""What a study is before anything is trained: its trials, and what is wrong with it."""

from __future__ import annotations

import pytest

from cnnbatch.errors import UserError
from cnnbatch.job import StudyJob, StudyTrial, in_force, job_names, load_job, parse_job, trials_of
from tests.training.study.test_study import study


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
    last: StudyTrial = trials[-1]
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


TEMPLATES = """\
kind: study
task: {name: classify, model: resnet18}
input: {url: "dataset:cifar10", subset: {}}
output: out
train: {}
study:
  cases:
    small: {train: {epochs: 3, batch: 8}, input: {limit: 20}}
    other: {input: cells, task: {model: resnet34}}
  vary: {train: {strategy: [head, all]}, input.subset.share: [0.1, 1.0]}
  lesson:
    train: {epochs: 5, validation: 0.2}
    input: {sample: 0.04}
    study: {first: 1, seeds: 1, vary: {input.subset.share: [0.5]}, cases: {small: {train: {epochs: 1}}}}
  seeds: 3
"""


def trials_with(*given: str) -> list[StudyTrial]:
    job = parse_job(TEMPLATES, "job.yaml", given)
    assert isinstance(job, StudyJob)
    return trials_of(in_force(job, job.lesson))


@pytest.mark.parametrize("lesson", [[], ["lesson=true"]])
@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("train.epochs=7", 7),
        ("train.batch=4", 4),
        ("train.strategy=scratch", "scratch"),
        ("train.validation=0.4", 0.4),
        ("input.subset.share=0.25", 0.25),
        ("input.sample=0.5", 0.5),
        ("input.limit=11", 11),
        ("input=photos", "photos"),
        ("input.url=photos", "photos"),
        ("task.model=resnet50", "resnet50"),
        ("task={model: resnet50}", "resnet50"),
        ("compute.backend=eager", "eager"),
        ("max_failed=0.5", 0.5),
    ],
)
def test_the_command_line_wins_over_cases_ranges_and_the_lesson(
    lesson: list[str], given: str, value: object
) -> None:
    path = {"input": "input.url", "task": "task.model"}.get(given.partition("=")[0], given.partition("=")[0])
    trials = trials_with(given, *lesson)
    assert trials
    for trial in trials:
        found: object = trial.job
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value
        assert path not in trial.settings


def test_another_collection_is_taken_whole() -> None:
    for trial in trials_with("input=photos", "lesson=true"):
        chosen = trial.job.input
        assert (chosen.sample, chosen.limit) == (1.0, None)
        assert chosen.subset is not None
        assert chosen.subset.share == 0.5  # What varies still varies.
        assert trial.job.train.validation == 0.2  # The rest of the lesson stays.


def test_what_a_person_says_of_the_study_wins_over_its_lesson() -> None:
    assert len(trials_with("lesson=true")) == 2 * 2
    assert len(trials_with("study.first=2", "study.seeds=2", "lesson=true")) == 2 * 2 * 2
    given = "study.vary.input.subset.share=[0.2, 0.3]"
    assert {one.settings["input.subset.share"] for one in trials_with(given, "lesson=true")} == {0.2, 0.3}
    case = {
        one.case: one.job.train.epochs
        for one in trials_with("study.cases.small.train.epochs=9", "lesson=true")
    }
    assert case == {"small": 9, "other": 5}


def test_a_field_inside_what_varies_is_taken_out_of_it() -> None:
    job = load_job(
        "sweep", ["input=photos", "output=out", "train.augment.flip=false", "train.learning_rate=0.01"]
    )
    assert isinstance(job, StudyJob)
    assert "train.learning_rate" not in job.study.search
    trials = trials_of(job)
    assert {one.job.train.augment.flip for one in trials} == {False}
    assert {one.job.train.learning_rate for one in trials} == {0.01}
    assert len({one.job.train.augment.crop for one in trials}) == 2


def test_the_lesson_of_the_curves_takes_all_of_a_small_collection() -> None:
    job = load_job("transfer_curves", ["input=photos", "output=out", "lesson=true"])
    assert isinstance(job, StudyJob)
    for trial in trials_of(in_force(job, True)):
        assert (trial.job.input.url, trial.job.input.sample) == ("photos", 1.0)


def test_the_lesson_of_the_skips_trains_each_of_the_three() -> None:
    job = load_job("fcn_skips", ["input=photos", "output=out", "lesson=true"])
    assert isinstance(job, StudyJob)
    models = [str(getattr(trial.job.task, "model", "")) for trial in trials_of(in_force(job, True))]
    assert models == [f"fcn{stride}s_mobilenet_v2" for stride in (32, 16, 8)]


TRAININGS = {
    "finetune",
    "finetune_demo",
    "train_detector",
    "train_faces",
    "train_instances",
    "train_keypoints",
    "train_segmenter",
}


STUDIES = {"face_alignment", "face_lineage", "fcn_skips", "sweep", "transfer_2x2", "transfer_curves"}


@pytest.mark.parametrize("name", sorted(set(job_names()) - TRAININGS))
def test_a_job_without_a_lesson_says_so(name: str) -> None:
    fields = ["input=photos", "output=out", "lesson=true"]
    has_one = name in STUDIES
    if has_one:
        job = load_job(name, fields)
        assert isinstance(job, StudyJob)
        assert job.lesson
        return
    with pytest.raises(UserError, match=r"override lesson=true: this job has no lesson") as caught:
        load_job(name, fields)
    assert "face_lineage, fcn_skips, finetune, " in str(caught.value)


def test_a_study_without_a_lesson_says_so_with_its_other_mistakes() -> None:
    with pytest.raises(UserError, match=r"job\.yaml:8: this job has no lesson") as caught:
        parse_job(TEXT + "lesson: true\nmax_failed: 3\n", "job.yaml")
    assert "2 mistakes" in str(caught.value)
    job = parse_job(TEXT + "lesson: true\n", "job.yaml", ["study.lesson={train: {epochs: 1}}"])
    assert isinstance(job, StudyJob)
    assert job.lesson


@pytest.mark.parametrize(
    "section", ["3", "[]", "{lesson: 3}", "{lesson: {study: 3}}", "{vary: 3, cases: [1]}"]
)
def test_templates_that_are_none_are_told_as_before(section: str) -> None:
    text = TEXT.partition("study:")[0] + f"study: {section}\n"
    for given in ([], ["input=photos", "train.epochs=3", "study.vary.train.epochs=[1]", "lesson=true"]):
        with pytest.raises(UserError, match="in the job; nothing was run"):
            parse_job(text, "job.yaml", given)
