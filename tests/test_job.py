"""The job file: what it accepts, and how it says what is wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cnnbatch import spec
from cnnbatch.errors import UserError
from cnnbatch.job import (
    Compute,
    MapJob,
    fingerprint_fields,
    job_names,
    job_purpose,
    job_schema,
    jobs_folder,
    load_job,
    parse_job,
    to_yaml,
)
from cnnbatch.mistakes import nearest

GOOD = """\
# A job.
task: {name: classify, model: mobilenet_v2}
input: photos
output: out
"""


def mistakes(text: str, *overrides: str) -> list[str]:
    """Return the lines that follow the headline of the error."""
    with pytest.raises(UserError) as caught:
        parse_job(text, "job.yaml", overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_short_job_has_every_default() -> None:
    job = parse_job(GOOD, "job.yaml")
    assert (job.kind, job.task.name, job.input.url, job.output.url) == ("map", "classify", "photos", "out")
    assert (job.input.format, job.input.limit, job.input.sample, job.input.shard_size) == (
        "auto",
        None,
        1.0,
        "auto",
    )
    assert job.compute == Compute()
    assert job.max_failed == 0.01


def test_a_list_of_addresses_is_an_input() -> None:
    job = parse_job(GOOD.replace("photos", "[a.jpg, b.jpg]"), "job.yaml")
    assert job.input.url == ("a.jpg", "b.jpg")


def test_every_mistake_is_told_with_its_line() -> None:
    text = """\
# A job.
task:
  name: classify
  modle: resnet50
  top_k: many
input: {url: photos, limit: ten, sample: 2,
  shardsize: 3}
compute:
  pool: rya
  workers: {min: 3}
limit: 3
max_failed: 1.5
"""
    assert mistakes(text) == [
        "job.yaml:2: output: missing; expected text (not empty) or a section with url, storage;"
        " write it in the file or add output=… to the command",
        "job.yaml:2: task.model: missing; expected text;"
        " write it in the file or add task.model=… to the command",
        "job.yaml:4: task.modle: no such field; did you mean task.model?",
        'job.yaml:5: task.top_k: expected a whole number (at least 1), got "many"',
        'job.yaml:6: input.limit: expected a whole number (at least 1) or null, got "ten"',
        "job.yaml:6: input.sample: expected a number (above 0 and at most 1), got 2",
        "job.yaml:7: input.shardsize: no such field; did you mean input.shard_size?",
        'job.yaml:9: compute.pool: expected auto, ray or inline, got "rya"; did you mean ray?',
        "job.yaml:10: compute.workers.max: missing; expected a whole number (at least 1);"
        " write it in the file or add compute.workers.max=… to the command",
        "job.yaml:11: limit: no such field; did you mean input.limit?",
        "job.yaml:12: max_failed: expected a number (at least 0 and at most 1), got 1.5",
    ]


def test_mistakes_in_overrides_are_named_as_such() -> None:
    found = mistakes(
        GOOD, "input.limit=0", "inptu.limit=3", "max_faild=0.1", "input.sample", "compute.device=gpu"
    )
    assert found == [
        "override input.limit=0: expected a whole number (at least 1) or null, got 0",
        "override inptu.limit=3: inptu: no such field; did you mean input?",
        "override max_faild=0.1: no such field; did you mean max_failed?",
        'override compute.device=gpu: expected auto, cpu, cuda or mps, got "gpu"; did you mean cpu?',
        "override input.sample: expected key=value, as in input=photos",
    ]


def test_the_mistake_of_a_replaced_value_belongs_to_the_override_alone() -> None:
    text = GOOD.replace("input: photos", "input: {url: photos, limit: ten, sample: 7}")
    assert [line.partition(": ")[0] for line in mistakes(text, "input=other", "input.limit=0")] == [
        "job.yaml:3",
        "override input.limit=0",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("input.limit=true", "a whole number"),
        ("input.limit=3.5", "a whole number"),
        ("input.limit=-1", "at least 1"),
        ("input.sample=0", "above 0"),
        ("input.sample=.nan", "a number"),
        ("input.shard_size=0", "at least 1"),
        ("input.shard_size=all", "auto"),
        ("input.keep=[1]", "input.keep[0]: expected text"),
        (
            "input.url={a: 1}",
            "text (not empty) or a list (not empty) of text (not empty), got a section with a",
        ),
        ("input=[]", "not empty"),
        ("input=", "not empty"),
        ("output=[a, b]", "output.url: expected text"),
        ("max_failed=-0.1", "at least 0"),
        ("compute.workers=0", "at least 1"),
        (
            "compute.workers={min: 4, max: 2}",
            "compute.workers={min: 4, max: 2}: expected max to be at least min, got min 4 and max 2",
        ),
        ("compute.gpus_per_worker=1.5", "a part of one GPU or a whole number"),
        ("compute.batch=0", "at least 1"),
        ("compute.batch_timeout_s=0", "above 0"),
        ("compute.start_timeout_s=.inf", "a number"),
        ("input.storage.timeout_s=0", "above 0"),
        ("task=classify", "a section with name"),
        ("task.name=3", "the name of a task"),
        ("task.name=classfy", "classify"),
        ("task.top_k=0", "at least 1"),
        ("kind=mapp", "expected map"),
    ],
)
def test_each_value_is_checked(change: str, expected: str) -> None:
    assert any(line.startswith("override ") and expected in line for line in mistakes(GOOD, change))


@pytest.mark.parametrize("changes", [("input=cats", "input.limit=100"), ("input.limit=100", "input=cats")])
def test_a_short_section_and_its_options_combine_in_any_order(changes: tuple[str, ...]) -> None:
    job = parse_job(GOOD, "job.yaml", changes)
    assert (job.input.url, job.input.limit) == ("cats", 100)


def test_overrides_are_yaml_values() -> None:
    job = parse_job(GOOD, "x", ["input.keep=[a, b]", "compute.workers={min: 1, max: 4}", "max_failed=1e-3"])
    assert job.input.keep == ("a", "b")
    assert (
        job.compute.workers == parse_job(GOOD + "compute: {workers: {min: 1, max: 4}}", "x").compute.workers
    )
    assert job.max_failed == 0.001


@pytest.mark.parametrize(
    "address", ["*.jpg", "**/a*.png", "2026", "null", "a: b", "s3://b/k?x=[1", "C:\\photos", "#1"]
)
def test_an_address_on_the_command_line_is_taken_as_it_is(address: str) -> None:
    if address == "a: b":
        assert any("no such field" in line for line in mistakes(GOOD, f"input={address}"))
        return
    if address == "#1":
        address = "photos#1"
    assert parse_job(GOOD, "x", [f"input={address}", f"output={address}"]).input.url == address


def test_overrides_from_python() -> None:
    changes: dict[str, Any] = {
        "input": {"url": Path("/photos"), "limit": 3},
        "input.keep": ("a",),
        "output": "o=1",
    }
    job = parse_job(GOOD, "x", changes)
    assert (job.input.url, job.input.limit, job.input.keep, job.output.url) == ("/photos", 3, ("a",), "o=1")
    with pytest.raises(UserError, match=r"override max_faild=3: no such field"):
        parse_job(GOOD, "x", {"max_faild": 3})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected `key: value` lines, got an empty file"),
        ("- a\n", "got a list"),
        ("task: {name: classify\ninput: x\n", "job.yaml:2: this is not YAML"),
        ("task: &a [*a]\n", "job.yaml:1: an alias may not contain itself"),
        ("task: !!python/name:os.system ''\n", "job.yaml:1: expected a plain value"),
        ("task: *nothing\n", "undefined alias"),
        ("a: 1\n---\nb: 2\n", "job.yaml:2: this is not YAML"),
        ("? [a]\n: 1\n", "job.yaml:1: expected a name before the colon"),
        ("a: \x00\n", "this is not YAML text"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_in_plain_words(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^job\.yaml") as caught:
        parse_job(text, "job.yaml")
    assert said in str(caught.value)


def test_a_key_that_is_there_twice_is_a_mistake() -> None:
    assert mistakes(GOOD + "input: others\n") == ["job.yaml:5: input: is there twice; keep one"]


def test_words_of_yaml_1_1_are_text() -> None:
    data = spec.parse_text("a: no\nb: on\nc: 1e-3\nd: 010\ne: 2026-11-01\nf: 1_000\ng: 12:30", "x").data
    assert data == {
        "a": "no",
        "b": "on",
        "c": 0.001,
        "d": "010",
        "e": "2026-11-01",
        "f": "1_000",
        "g": "12:30",
    }


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), plain, max_size=4))
def test_any_value_survives_yaml(data: dict[str, Any]) -> None:
    assert spec.parse_text(spec.dump(data) or "{}", "x").data == data


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip)


@given(
    names=st.lists(texts, max_size=3),
    limit=st.none() | st.integers(1),
    sample=st.floats(0, 1, exclude_min=True),
    workers=st.just("auto")
    | st.integers(1, 9)
    | st.fixed_dictionaries({"min": st.just(1), "max": st.integers(1, 9)}),
)
def test_a_job_survives_yaml(names: list[str], limit: int | None, sample: float, workers: Any) -> None:
    job = parse_job(
        GOOD.replace("photos", "/photos").replace("out\n", "s3://b/out\n"),
        "x",
        {"input.keep": names, "input.limit": limit, "input.sample": sample, "compute.workers": workers},
    )
    assert parse_job(to_yaml(job), "job.yaml") == job
    assert yaml.safe_load(to_yaml(job)) == job.model_dump(mode="json")


def test_a_written_job_runs_from_anywhere_and_holds_no_signature(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    job = parse_job(GOOD, "x", ["input=[photos, 'https://me:pw@host/a.jpg?n=1&X-Amz-Signature=abc']"])
    written = parse_job(to_yaml(job), "x")
    assert written.input.url == (str(tmp_path / "photos"), "https://host/a.jpg?n=1")
    assert written.output.url == str(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        *(
            "task.model=resnet50",
            "task.top_k=3",
            "input=other",
            "input.format=list",
            "input.key=k",
            "input.label=l",
        ),
        *("input.truth=t", "input.keep=[a]"),
    ],
)
def test_what_can_change_a_row_is_in_the_fingerprint(change: str) -> None:
    assert fingerprint_fields(parse_job(GOOD, "x", [change])) != fingerprint_fields(parse_job(GOOD, "x"))


@pytest.mark.parametrize(
    "change",
    [
        *(
            "input.limit=3",
            "input.sample=0.5",
            "input.shard_size=7",
            "input.storage.timeout_s=5",
            "input=./photos",
        ),
        *(
            "compute.device=cpu",
            "compute.workers=3",
            "compute.batch=5",
            "compute.pool=inline",
            "output=elsewhere",
        ),
        *("max_failed=1", "output.storage.anonymous=true"),
    ],
)
def test_what_cannot_change_a_row_is_not(change: str) -> None:
    fields = fingerprint_fields(parse_job(GOOD, "x"))
    assert fingerprint_fields(parse_job(GOOD, "x", [change])) == fields
    assert json.loads(json.dumps(fields)) == fields


def test_a_job_is_frozen_closed_and_travels() -> None:
    job = parse_job(GOOD, "x")
    with pytest.raises(ValidationError):
        job.max_failed = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        MapJob(task=job.task, input=job.input, output=job.output, colour="red")  # type: ignore[call-arg]
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301 - our own bytes


def test_jobs_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_job(str(path)).input.url == "photos"
    assert load_job("classify", ["input=photos", "output=out"]).task.name == "classify"
    assert {"classify", "demo"} <= set(job_names())


def test_an_unknown_job_proposes_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError, match=r"'clasify'.*\n.*did you mean classify\?.*demo"):
        load_job("clasify")
    with pytest.raises(UserError, match=r"neither\n.*did you mean demo\?"):
        load_job("jobs/demmo.yaml")


def test_a_folder_or_bytes_are_no_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        load_job(str(tmp_path))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as a job"):
        load_job(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("name", job_names())
def test_every_job_that_comes_along_is_right(name: str) -> None:
    lines = (jobs_folder() / f"{name}.yaml").read_text().splitlines()
    job = load_job(name, ["input=photos", "output=out"])
    assert job_purpose(name).endswith(".")
    assert any("Hardware:" in line for line in lines)
    jsonschema.validate(json.loads(job.model_dump_json()), job_schema())


def test_the_demo_names_weights_and_pictures_that_packages_ship() -> None:
    from cnnbatch.storage import Storage

    job = load_job("demo")
    assert len(job.input.url) == 8
    assert all(Storage().head(url).size > 50_000 for url in job.input.url)
    assert (job.compute.pool, job.compute.workers) == ("ray", 2)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (GOOD, True),
        (GOOD.replace("photos", "[a, b]"), True),
        (GOOD.replace("photos", "{url: photos, limit: 3}"), True),
        (GOOD.replace("photos", "{url: photos, limit: 0}"), False),
        (GOOD.replace("name: classify", "name: mine.tasks:Sort, colour: red"), True),
        (GOOD.replace("name: classify", "name: classfy"), False),
        (GOOD.replace("model:", "modle:"), False),
        (GOOD + "limit: 3\n", False),
        (GOOD + "compute: {workers: {min: 1, max: 2}}\n", True),
        (GOOD + "compute: {workers: many}\n", False),
    ],
)
def test_the_schema_says_what_the_models_say(text: str, valid: bool) -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(spec.parse_text(text, "x").data) is valid


def test_the_schema_completes_every_task() -> None:
    branches = job_schema()["properties"]["task"]["oneOf"]
    names = [branch["properties"]["name"].get("const") for branch in branches]
    assert "classify" in names
    assert all(
        branch.get("additionalProperties") is False
        for branch in branches
        if "const" in branch["properties"]["name"]
    )


def test_nearest() -> None:
    assert nearest("Modle", ["model", "weights"]) == "model"
    assert nearest("colour", ["model", "weights"]) is None
