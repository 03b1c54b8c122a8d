"""Data is not code: what is imported is named by a person or by an installed package, never by a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.config import plugins
from cnnbatch.config.entries import GROUP, points
from cnnbatch.config.yaml import dump
from cnnbatch.errors import UserError
from cnnbatch.evaluation.comparison import CompareOptions, compare
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, StudyJob, to_yaml
from cnnbatch.launch import launch, report
from cnnbatch.models import Choice
from cnnbatch.models.trained import with_trained
from cnnbatch.models.trained_files import read_model
from cnnbatch.output.export import ExportOptions, export
from cnnbatch.storage import Storage
from cnnbatch.tasks.classify import ClassifierInput
from cnnbatch.terminal.screen import Screen
from tests import tiny
from tests.jobs import load_job
from tests.training.study.test_study import study

QUIET = RunOptions(quiet=True)
EVIL = (
    "from tests.toy import Toy\nfrom tests.tiny import build\nfrom pathlib import Path\nPath({!r}).touch()\n"
)

ABOUT = {
    "architecture": {"task": "classify", "model": "squeezenet1_1", "library": "", "features": None},
    "preprocessing": {
        "resize": 32,
        "crop": [32, 32],
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "fit": "cover",
    },
    "classes": ["cat", "dog"],
    "sha256": "0" * 64,
    "strategy": "head",
    "why": "the job says so",
    "figures": {"chance": 0.5},
    "depths": [{"block": "a", "probe": 0.5, "evidence": 1.0}],
    "validation": {"of": "accuracy", "accuracy": 0.5, "interval": [0.1, 0.9]},
    "failed": {"undecodable": 1},
    "epochs": [{"accuracy": 0.5}],
    "learning_rate": 0.01,
    "data": {"train": 10, "validation": 2},
}


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the file that importing the module ``evilmod`` leaves behind."""
    flag = tmp_path / "sprung"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evilmod.py").write_text(EVIL.format(str(flag)))
    monkeypatch.syspath_prepend(tmp_path / "evil")
    monkeypatch.setattr(plugins, "_given", set())
    points.cache_clear()
    yield flag
    sys.modules.pop("evilmod", None)
    points.cache_clear()


def install(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with one entry point, as pip leaves it."""
    about = folder / "evil_plugin-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nevil = {address}\n")
    monkeypatch.syspath_prepend(folder)
    points.cache_clear()


def folder_of(place: Path, about: Any) -> Path:
    place.mkdir(exist_ok=True)
    (place / "model.json").write_text(json.dumps(about))
    return place


def naming(code: str, **changes: Any) -> dict[str, Any]:
    return {**ABOUT, **changes, "architecture": {**ABOUT["architecture"], "model": code}}  # type: ignore[dict-item]


def classify(out: Path, **task: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {"name": "classify", **task},
            "input": "package:skimage/data/coffee.png",
            "output": str(out),
            "compute": {"pool": "inline"},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["evilmod:build", "os:abort", "this:x", "evilmod:build:x", " os:abort", ":", "a:"]
)
def test_a_trained_folder_names_no_code(tmp_path: Path, sprung: Path, code: str) -> None:
    model = folder_of(tmp_path / "model", naming(code))
    this_was_there = "this" in sys.modules
    with pytest.raises(UserError, match=r"(?s)model\.json names code, .*task\.weights="):
        run(classify(tmp_path / "out", model=str(model)), QUIET)
    # Nor where a person's model is another one, or the folder is what a training begins with.
    with pytest.raises(UserError, match="was trained from"):
        run(classify(tmp_path / "out", model="squeezenet1_1", weights=str(model)), QUIET)
    with pytest.raises(UserError, match="names code"):
        launch(tiny.job(tiny.colours(tmp_path / "c", 8), tmp_path / "t", task={"model": str(model)}), QUIET)
    assert not sprung.exists()
    assert "evilmod" not in sys.modules
    assert this_was_there or "this" not in sys.modules


def test_a_detector_s_folder_names_no_code_either(tmp_path: Path, sprung: Path) -> None:
    about = naming("evilmod:build", preprocessing={"size": [64, 64]})
    about["architecture"]["task"] = "detect"
    model = folder_of(tmp_path / "model", about)
    job = classify(tmp_path / "out", model="resnet18").model_dump(mode="json")
    job["task"] = {"name": "detect", "model": str(model)}
    with pytest.raises(UserError, match="names code"):
        run(MapJob.model_validate(job), QUIET)
    assert not sprung.exists()


@pytest.mark.slow
def test_what_was_trained_from_ones_own_code_is_used_by_naming_it(tmp_path: Path) -> None:
    folder, out = tiny.colours(tmp_path / "colours", 20), tmp_path / "out"
    launch(tiny.job(folder, out), QUIET)
    assert json.loads((out / "model.json").read_text())["architecture"]["model"] == "tests.tiny:build"
    fields = {"model": "tests.tiny:build", "weights": str(out)}
    job = classify(tmp_path / "labels", **fields).model_copy(
        update={"input": tiny.job(folder, out).input.model_copy(update={"format": "folders"})}
    )
    run(job, QUIET)
    rows = cnnbatch.open(str(tmp_path / "labels")).arrow(["key", "label"]).to_pylist()
    assert {row["label"] for row in rows} == {"blue", "green", "red"}
    assert all(row["label"] == row["key"].split("/")[0] for row in rows)


def test_an_installed_package_s_entry_point_may_be_named_by_a_folder(
    tmp_path: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(folder_of(tmp_path / "model", naming("evilmod:build")))
    with pytest.raises(UserError, match="names code"):
        with_trained(Choice(model), "classify", ClassifierInput)
    install(tmp_path / "site", "evilmod:build", monkeypatch)
    assert with_trained(Choice(model), "classify", ClassifierInput).model == "evilmod:build"
    other = folder_of(tmp_path / "other", naming("evilmod:Toy"))
    with pytest.raises(UserError, match="names code"):
        with_trained(Choice(str(other)), "classify", ClassifierInput)
    assert not sprung.exists()  # Looking at what is installed imports none of it.


@pytest.fixture
def output(tmp_path: Path, sprung: Path) -> Path:
    """Return an output with a truth whose job names a task that only its own file names."""
    out = tmp_path / "out"
    data = {"name": "tests.toy:Toy"}
    colours = {"url": str(tiny.colours(tmp_path / "photos", 2)), "format": "folders"}
    job = {"task": data, "input": colours, "output": str(out), "compute": {"pool": "inline"}}
    run(MapJob.model_validate(job), QUIET)
    record = out / "_job" / "job.yaml"
    record.write_text(record.read_text().replace("tests.toy:Toy", "evilmod:Toy"))
    return out


def test_an_output_is_read_without_what_its_job_names(output: Path, tmp_path: Path, sprung: Path) -> None:
    assert len(cnnbatch.open(str(output))) == 6
    report(str(output), Storage())
    with Screen(quiet=True) as screen:
        evaluate_again(str(output), [], screen)
        compare(str(output), str(output), CompareOptions(), Storage(), screen)
    export(str(output), "csv", str(tmp_path / "rows.csv"), ExportOptions())
    assert not sprung.exists()


def test_an_output_s_own_job_runs_again_only_with_code_that_someone_named(
    output: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = str(output / "_job" / "job.yaml")
    with pytest.raises(
        UserError, match=r"(?s)names code to run, 'evilmod:Toy' in task\.name.*--plugin evilmod:Toy"
    ):
        load_job(file)
    (tmp_path / "link.yaml").symlink_to(file)
    with pytest.raises(UserError, match="names code to run"):
        load_job(str(tmp_path / "link.yaml"))
    with pytest.raises(UserError, match="names code to run"):  # the types of values come from the task, too
        load_job(file, ["task.side=3"])
    assert not sprung.exists()
    # The same file as a person's own job is theirs, as are values that they give.
    assert load_job(file, ["task.name=evilmod:Toy"]).task.name == "evilmod:Toy"
    plugins.give(["evilmod:Toy"])
    assert load_job(file).task.name == "evilmod:Toy"
    monkeypatch.setattr(plugins, "_given", set())
    install(tmp_path / "site", "evilmod:Toy", monkeypatch)
    assert load_job(file).task.name == "evilmod:Toy"


def test_the_network_of_an_output_s_job_is_code_too(tmp_path: Path) -> None:
    file = tmp_path / "_job" / "job.yaml"
    file.parent.mkdir()
    file.write_text(to_yaml(classify(tmp_path / "out", model="evilmod:build")))
    with pytest.raises(UserError, match=r"'evilmod:build' in task\.model"):
        load_job(str(file))
    assert load_job(str(file), ["task.model=evilmod:build"]).task.name == "classify"


def test_the_commands_take_plugins(output: Path, sprung: Path) -> None:
    file, given = str(output / "_job" / "job.yaml"), ["--plugin", "evilmod:Toy"]
    commands = [["run", file, "--quiet"], ["check", file], ["report", str(output)], ["evaluate", str(output)]]
    refused = [CliRunner().invoke(app, command) for command in commands]
    assert [one.exit_code for one in refused] == [2, 2, 0, 0]
    assert all("--plugin evilmod:Toy" in one.output for one in refused[:2])
    assert not sprung.exists()
    for command in commands:
        wrong = CliRunner().invoke(app, [*command, "--plugin", "no_such_module:x"])
        assert (wrong.exit_code, wrong.exception.__class__) == (2, SystemExit)
        assert "--plugin: 'no_such_module:x' names the module" in wrong.output
    # Another task's rows are not mixed in: the output was made by tests.toy:Toy, whatever its file says now.
    again = CliRunner().invoke(app, [*commands[0], *given])
    assert (again.exit_code, again.exception.__class__) == (2, SystemExit)
    assert "made by another job" in again.output


@pytest.mark.parametrize(
    "address", ["evilmod", "evilmod:", "", "a b:c", "evilmod:nothing", "no_such_module:x"]
)
def test_a_plugin_is_an_address_of_something(sprung: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"^--plugin: "):
        plugins.give([address])


@pytest.mark.parametrize("view", ["detect", "segment", "instances"])
def test_a_network_of_several_is_code_like_that_of_one(tmp_path: Path, sprung: Path, view: str) -> None:
    views = {one: {"model": "fasterrcnn_resnet50_fpn"} for one in ("detect", "segment", "instances")}
    views[view] = {"model": "evilmod:build"}
    place = tmp_path / "out" / "_job"
    place.mkdir(parents=True)
    task = {"name": "three_views", **views}
    (place / "job.yaml").write_text(dump({"kind": "map", "task": task, "input": "photos", "output": "out"}))
    with pytest.raises(UserError, match=rf"names code to run, 'evilmod:build' in task\.{view}\.model"):
        load_job(str(place / "job.yaml"))
    assert not sprung.exists()


STUDIES: list[dict[str, Any]] = [
    {"cases": {"a": {"task": {"name": "evilmod:Toy"}}}, "seeds": 2},
    {"vary": {"task.name": ["classify", "evilmod:Toy"]}},
    {"vary": {"task": [{"name": "evilmod:Toy"}]}},
    {"search": {"task": {"name": ["evilmod:Toy"]}}},
    {"seeds": 2, "lesson": {"task": {"name": "evilmod:Toy"}}},
    {"seeds": 2, "lesson": {"study": {"cases": {"a": {"task": {"name": "evilmod:Toy"}}}}}},
]


@pytest.mark.parametrize("section", STUDIES)
def test_a_study_s_templates_are_data_where_they_lie_in_an_output(
    tmp_path: Path, sprung: Path, section: dict[str, Any]
) -> None:
    job = study("photos", tmp_path / "out", {"seeds": 2}).model_dump(mode="json")
    place = tmp_path / "out" / "_job"
    place.mkdir(parents=True)
    (place / "job.yaml").write_text(dump({**job, "study": section}))
    (place / "study.json").write_text('{"metric": "accuracy"}')
    for read in (
        lambda: report(str(tmp_path / "out"), Storage()),
        lambda: load_job(str(place / "job.yaml")),
    ):
        with pytest.raises(UserError, match=r"names code to run, '(evilmod:Toy|tests\.tiny:build)'"):
            read()
    assert not sprung.exists()


def test_a_study_of_ones_own_network_is_reported_without_it(tmp_path: Path, sprung: Path) -> None:
    job = study("photos", tmp_path / "out", {"seeds": 2})
    assert isinstance(job, StudyJob)
    place = tmp_path / "out" / "_job"
    place.mkdir(parents=True)
    (place / "job.yaml").write_text(to_yaml(job).replace("tests.tiny:build", "evilmod:build"))
    (place / "study.json").write_text('{"metric": "accuracy"}')
    report(str(tmp_path / "out"), Storage())
    assert "evilmod:build" in (tmp_path / "out" / "report.html").read_text()
    assert not sprung.exists()


# ---- model.json that no training wrote --------------------------------------------------------


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from([10**30, -1, "classify", "detect", "\ud800", "evilmod:build", "../../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [(name,) for name in ABOUT] + [
    (name, inner) for name, value in ABOUT.items() if isinstance(value, dict) for inner in value
]


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(ABOUT))
    section = found
    for name in path[:-1]:
        section = section[name]
    if value is LEFT_OUT:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    return found


LEFT_OUT = object()


def usable(model: Path) -> None:
    """Do with a folder what jobs, reports and studies do, as far as no weights are read."""
    about = read_model(str(model))
    assert about is not None
    if about["architecture"]["task"] == "classify":
        from cnnbatch.models import Preprocessing

        found = with_trained(Choice(str(model)), "classify", ClassifierInput)
        Preprocessing(**found.preprocessing).describe()
        "\n".join(found.classes or ()).encode()
    (model / "_job").mkdir(exist_ok=True)
    (model / "_job" / "job.yaml").write_text("task: {name: classify}\n")
    report(str(model), Storage())


def check(model: Path) -> None:
    words = ""
    try:
        usable(model)
    except UserError as error:
        words = str(error)
    assert len(words.encode()) < 3000
    assert not words or ("model.json" in words and "what to do" in words)


@pytest.mark.slow
@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_of_any_kind_is_used_or_refused(tmp_path: Path, path: tuple[str, ...]) -> None:
    for value in (LEFT_OUT, None, True, 3, -1, 0, 1e400, "", "x", "\ud800", [], {}, ["x"], [[]], {"x": []}):
        folder_of(tmp_path / "model", changed(path, value))
        check(tmp_path / "model")


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FIELDS), JSON)
def test_any_json_in_a_field_is_used_or_refused(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    folder_of(tmp_path / "model", changed(path, value))
    check(tmp_path / "model")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not JSON"),
        (b"null", "holds NoneType"),
        (b"[1]", "holds list"),
        (b'"text"', "holds str"),
        (b"\xff\xfe{}", "is not JSON"),
        (json.dumps(ABOUT).encode("utf-16-le"), "is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": %s}' % (b"9" * 5000), "is not JSON"),
        (b'{"a": 1, "a": 2}', "the name 'a' comes twice"),
        (json.dumps({**ABOUT, "classes": ["a", "a"]}).encode(), "classes are there twice"),
        (json.dumps({**ABOUT, "classes": []}).encode(), "classes: expected a list"),
        (json.dumps({"architecture": 3}).encode(), "architecture: expected a section"),
    ],
)
def test_what_is_no_model_is_said_in_one_message(tmp_path: Path, data: bytes, words: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        with_trained(Choice(str(model)), "classify", ClassifierInput)
    assert str(model / "model.json") in str(caught.value)


def test_a_model_json_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.models.trained_files._MOST_BYTES", 100)
    with pytest.raises(UserError, match="is larger than"):
        with_trained(Choice(str(folder_of(tmp_path / "model", ABOUT))), "classify", ClassifierInput)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ABOUT).encode())
    assert with_trained(Choice(str(model)), "classify", ClassifierInput).classes == ("cat", "dog")


# ---- a place that holds no trained model ------------------------------------------------------


def stopped(out: Path) -> None:
    (out / "_job" / "training").mkdir(parents=True)
    (out / "_job" / "training" / "identity.json").write_text('{"task.name": "classify"}')


def studied(out: Path) -> None:
    (out / "_job").mkdir(parents=True)
    (out / "_job" / "study.json").write_text("{}")


def predicted(out: Path) -> None:
    (out / "_job").mkdir(parents=True)
    (out / "_job" / "job.yaml").write_text("{}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (stopped, "its training has not ended"),
        (studied, r"it is a study.*task\.model=.*/trials/NAME"),
        (predicted, "the output of a job that predicts"),
        (lambda out: out.mkdir(), "holds no trained model"),
        (lambda out: None, "holds no trained model"),
    ],
)
def test_a_place_without_a_model_says_what_it_is(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "out")
    with pytest.raises(UserError, match=rf"(?s)^task\.model: .*{words}"):
        with_trained(Choice(str(tmp_path / "out")), "classify", ClassifierInput)
