"""The job file: what it accepts, and how it says what is wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cnnbatch.config import yaml as spec
from cnnbatch.config.compute import Compute
from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.job import (
    MapJob,
    fingerprint_fields,
    job_names,
    job_purpose,
    job_schema,
    jobs_folder,
    to_yaml,
)
from cnnbatch.job import load_job as load_any_job
from tests.jobs import load_job, parse_job

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
        'job.yaml:9: compute.pool: expected auto, ray, local or inline, got "rya"; did you mean ray?',
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
        ("input.keep=1", "expected a list of text (not empty), got 1"),
        ("input.keep=[[a]]", "input.keep[0]: expected text"),
        ("input.keep=[]]", "expected a list"),
        ("input={url: {a: 1}}", "input.url: expected text (not empty) or a list"),
        ("input={a: 1}", "input.a: no such field"),
        ("input={limit: 1, limit: 2}", "limit: is there twice; keep one"),
        ("input.limit=3 # three", "expected a whole number"),
        ("input.limit=" + "9" * 5000, "expected a number of at most 100 digits, got one of 5,000"),
        ("input.sample=" + "9" * 99, "a number"),
        ("input..limit=3", "expected key=value"),
        (".".join("a" * 99) + "=3", "expected key=value"),
        ("input.keep=" + "[" * 99 + "]" * 99, "expected a list"),
        ("input.limit=!!int x", "expected a whole number"),
        ("input=[]", "not empty"),
        ("input=", "not empty"),
        ("output={url: [a, b]}", "output.url: expected text"),
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
        ("task.name=3", "no task is called '3'"),
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
    "text",
    [
        *(
            "*.jpg",
            "**/a*.png",
            "2026",
            "1e3",
            "null",
            "~",
            "true",
            "a: b",
            "photos: ",
            "#1",
            "photos #2",
            "- a",
        ),
        *(
            "s3://b/k?x=[1",
            "[a",
            "[a] b",
            "{a",
            "C:\\photos",
            "'a'",
            '"a"',
            "a\\x41",
            "&a",
            "*a",
            "!a",
        ),
        *("!!int x", "%a", "@a", "`a`", "|", ">", "a=b", " a", "a ", "a, b", "---", "...", "?", "猫 ☃", "‮a"),
    ],
)
def test_text_on_the_command_line_is_taken_as_it_is(text: str) -> None:
    fields = (
        f"input={text}",
        f"output={text}",
        f"task.model={text}",
        f"input.key={text}x",
        f"task.classes={text}",
    )
    job = parse_job(GOOD, "x", fields)
    values = (job.input.url, job.output.url, job.task.model, job.input.key, job.task.classes)  # type: ignore[attr-defined]
    assert values == (text, text, text, f"{text}x", None if text == "null" else text)


def test_a_file_named_like_a_list_is_that_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_job(GOOD, "x", ["input=[2019, b]"]).input.url == ("2019", "b")
    for name in ("[2019, b]", "{url: a}", "null"):
        (tmp_path / name).touch()
        assert parse_job(GOOD, "x", [f"input={name}"]).input.url == name
        assert parse_job(GOOD, "x", [f"task.classes={name}"]).task.classes == name  # type: ignore[attr-defined]


def test_nothing_and_null_stand_for_no_value_where_a_text_may_be_left_out() -> None:
    text = GOOD.replace("photos", "{url: photos, label: kind, truth: t}")
    job = parse_job(text, "x", ["input.label=", "input.truth=null"])
    assert (job.input.label, job.input.truth) == (None, None)
    assert any("input.url=: expected text (not empty)" in line for line in mistakes(GOOD, "input.url="))


def test_a_text_is_read_by_the_type_of_its_field() -> None:
    changes = [
        *(
            "input={url: 2026, limit: 3, keep: [1, null, a b]}",
            "task.name=detect",
            "task.aliases={1: null, b: 2}",
        ),
        *("task.aliases.c=3 #", "task.sha256=" + "1" * 64, "input.storage={region: 1, retries: 2}"),
        "task.size=[320, 640]",
    ]
    job: Any = parse_job(GOOD, "x", changes)
    assert (job.input.url, job.input.limit, job.input.keep) == ("2026", 3, ("1", "null", "a b"))
    assert (job.task.aliases, job.task.sha256) == ({"1": None, "b": "2", "c": "3 #"}, "1" * 64)
    assert (job.input.storage.region, job.input.storage.retries, job.task.size) == ("1", 2, (320, 640))
    assert parse_job(GOOD, "x", ["task.embedding=true"]).task.embedding is True  # type: ignore[attr-defined]
    assert parse_job(GOOD, "x", ["task.embedding=[1, b]"]).task.embedding == ("1", "b")  # type: ignore[attr-defined]


def test_what_a_study_varies_is_read_by_the_types_of_its_fields() -> None:
    job: Any = load_job(
        "sweep",
        [
            *(
                "input=photos #2",
                "output=out #2",
                "study.search.input.url=[2019, b#]",
                "study.cases={1: {input: 2}}",
            ),
            *(
                "study.search.input.label=[1, 2]",
                "study.search.train.batch=[8, 16]",
                "study.cases.a.input.url=3 #",
            ),
            "study.search.train.momentum={low: 0.1, high: 1e-0}",
        ],
    )
    assert (job.input.url, job.output.url) == ("photos #2", "out #2")


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_any_name_is_the_same_in_python_and_on_the_command_line(name: str) -> None:
    job = parse_job(GOOD, "x", [f"output={name}", f"task.weights={name}"])
    assert (job.output.url, job.task.weights) == (name, name)  # type: ignore[attr-defined]
    assert parse_job(GOOD, "x", {"output": name, "task.weights": name}) == job


def test_overrides_of_other_types_are_yaml_values() -> None:
    job = parse_job(GOOD, "x", ["input.keep=[a, b]", "compute.workers={min: 1, max: 4}", "max_failed=1e-3"])
    assert job.input.keep == ("a", "b")
    assert (
        job.compute.workers == parse_job(GOOD + "compute: {workers: {min: 1, max: 4}}", "x").compute.workers
    )
    assert job.max_failed == 0.001


@pytest.mark.parametrize("text", ["a\x1b[2J", "a\x7f", "a\x85", "a\nb", "a\tb", "\udcff", "[a, 'b\x01']"])
@pytest.mark.parametrize("key", ["input", "task.weights", "input.keep", "nothing"])
def test_control_characters_and_bytes_that_are_no_utf_8_are_refused(key: str, text: str) -> None:
    (said,) = mistakes(GOOD, f"{key}={text}")[-1:]
    assert "text without control characters" in said or "text in UTF-8" in said


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
    assert parse_job(GOOD, "x", {"input": "[a, b]"}).input.url == "[a, b]"
    with pytest.raises(UserError, match="without control characters"):
        parse_job(GOOD, "x", {"input": "a\0b"})
    with pytest.raises(UserError, match="in UTF-8"):
        parse_job(GOOD, "x", {"input": "\udcff"})
    with pytest.raises(UserError, match="a number of a hundred digits or more"):
        parse_job(GOOD, "x", {"input.shard_size": -(10**5000)})
    around: dict[str, Any] = {}
    around["input"] = around
    with pytest.raises(UserError, match="nest at most 64 deep"):
        parse_job(GOOD, "x", around)


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
        ("a: !!int x\n", "job.yaml:1: expected a value of the YAML tag !!int, got 'x'"),
        ("a: !!float x\n", "the YAML tag !!float, got 'x'"),
        ("a: !!bool x\n", "the YAML tag !!bool, got 'x'"),
        ("a: !!null x\n", "the YAML tag !!null, got 'x'"),
        ("a: !!int [1]\n", "got the YAML tag tag:yaml.org,2002:int"),
        ("a: !!set {b}\n", "got the YAML tag tag:yaml.org,2002:set"),
        ("a: !!omap [b: 1]\n", "got the YAML tag tag:yaml.org,2002:omap"),
        ("a: !!binary YQ==\n", "got the YAML tag tag:yaml.org,2002:binary"),
        ("a: !!timestamp 2020-01-01\n", "got the YAML tag tag:yaml.org,2002:timestamp"),
        ("\n\na: " + "1" * 5000, "job.yaml:3: expected a number of at most 100 digits, got one of 5,000"),
        ("a: " + "[" * 400 + "]" * 400, "job.yaml:1: this is not YAML: it has more than 64 levels"),
        ("a: " + "- " * 400, "job.yaml:1: this is not YAML"),
        (
            "\n".join(" " * depth + "a:" for depth in range(400)),
            "job.yaml:64: this is not YAML: it has more than 64",
        ),
        ("a: [" + "a," * 60_000 + "]", "it has more than 50,000 values"),
        ("a: '" + "a" * (1 << 20) + "'", "at most 1,048,576 characters"),
        (
            f"a: &a {'b' * 100_000}\nc: [{', '.join(['*a'] * 99)}]",
            "its aliases make more than 1,048,576 characters",
        ),
        ('a: "\\ud800"\n', "expected Unicode, got half of a character"),
        ('a: "\\U00110000"\n', "this is not YAML"),
        ("a: 1\n? {b: 1}\n: 2\n", "job.yaml:2: expected a name before the colon"),
        (
            "\n".join(
                ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
            ),
            "its aliases make more than 50,000 values",
        ),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_in_plain_words(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^job\.yaml") as caught:
        parse_job(text, "job.yaml")
    assert said in str(caught.value)


def test_a_key_that_is_there_twice_is_a_mistake() -> None:
    assert mistakes(GOOD + "input: others\n") == ["job.yaml:5: input: is there twice; keep one"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "task: {}",
            "task: {name: null}",
            "task: {name: [a]}",
            "task: {name: {a: 1}}",
            "task: {1: 2}",
            "task: {name: '.a:b'}",
            "task: {name: '..:b'}",
            "task: []",
        ),
        *(
            "kind: []",
            "kind: {a: 1}",
            "kind: null",
            "input: {1: 2}",
            "input: [[a]]",
            "input: [1]",
            "output: 3",
        ),
        *(
            "compute: []",
            "study: 3",
            "kind: study\nstudy: {cases: {a: 3}}",
            "kind: study\nstudy: {vary: {a: 3}}",
        ),
        *("kind: study\nstudy: {vary: {a.b.c: [3]}}", "kind: study\nstudy: {search: {a: {low: a, high: b}}}"),
        *(
            "kind: study\nstudy: {cases: {a: {task: 3}}}",
            "kind: study\nstudy: {lesson: {study: 3}, seeds: 2}",
        ),
        *(
            "null: 1",
            "true: 1",
            "1: 1",
            "<<: {a: 1}",
            "max_failed: 1e999",
            "max_failed: 2020-01-01",
            "train: 1",
        ),
        *('input: "a\\0b"', 'input: "a\\eb"', '"a\\eb": 1', "lesson: 1", "evaluate: [a]"),
    ],
)
def test_no_shape_of_a_job_is_a_traceback(text: str) -> None:
    with pytest.raises(UserError, match=r"^job\.yaml"):
        parse_job(text, "job.yaml")


def test_a_job_may_be_json() -> None:
    text = json.dumps(
        {"task": {"name": "classify", "model": "m"}, "input": "photos/\U0001f408", "output": "o"}
    )
    assert parse_job(text, "job.json").input.url == "photos/\U0001f408"


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


@settings(max_examples=30)
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
    with pytest.raises(UserError, match="neither"):
        load_job("x" * 5000)  # longer than any file's name


def test_a_folder_or_bytes_are_no_job(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        load_job(str(tmp_path))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as a job"):
        load_job(str(tmp_path / "x.yaml"))


PLACES = ["input=photos", "output=out"]
SAID = {
    "group": ["input=people"],
    "search": [*PLACES, "index=people"],
    "identify": [*PLACES, "index=people"],
    "verify": [*PLACES, "index=people", "verify.pairs=pairs.csv"],
}
"""What a person has to say, where that is not the input and the output."""


@pytest.mark.parametrize("name", job_names())
def test_every_job_that_comes_along_is_right(name: str) -> None:
    lines = (jobs_folder() / f"{name}.yaml").read_text().splitlines()
    job = load_any_job(name, SAID.get(name, PLACES))
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
    schema = job_schema()
    while "else" in schema:  # Behind the kinds of job that have no task.
        schema = schema["else"]
    branches = schema["properties"]["task"]["oneOf"]
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
