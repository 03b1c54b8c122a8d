"""What a person or a file may ask for has bounds; without them these would take hours, or all memory."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.cluster.nodes import WORKERS_A_CORE, require_cores
from cnnbatch.config.compute import Compute
from cnnbatch.errors import UserError
from cnnbatch.evaluation.comparison.gates import read_gates
from cnnbatch.job import load_job, parse_job
from cnnbatch.models.weights import files as weights
from cnnbatch.output import plan
from cnnbatch.sources.files import globs
from cnnbatch.sources.labelled import Labelled, labelled_by_pattern
from cnnbatch.sources.voc import xml as voc_xml
from cnnbatch.types import ImageRef

HUGE = str(10**30)
JOBS = {"map": "classify", "train": "finetune", "study": "sweep"}
PLACES = ("input=photos", "output=out")


# --- Numbers ---


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("map", f"compute.{name}") for name in ("batch", "workers", "workers.max", "cpus_per_worker")),
        *(("map", f"compute.{name}") for name in ("gpus_per_worker", "batch_timeout_s", "start_timeout_s")),
        *(("map", f"input.{name}") for name in ("shard_size", "subset.folds", "subset.seed")),
        *(("map", f"task.preprocessing.{name}") for name in ("crop", "resize")),
        *(("train", f"train.{name}") for name in ("batch", "epochs", "accumulate", "checkpoint_s", "seed")),
        *(("study", f"study.{name}") for name in ("trials", "seeds", "folds")),
    ],
)
@pytest.mark.parametrize("value", ["200000000", HUGE])
def test_a_number_that_nothing_could_do_is_a_mistake(kind: str, field: str, value: str) -> None:
    if field in ("input.subset.seed", "train.seed") and value != HUGE:
        pytest.skip("a seed may be large")
    with pytest.raises(UserError, match=r"at most|below") as caught:
        load_job(JOBS[kind], [*PLACES, f"{field}={value}"])
    assert field.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize("field", ["input.limit", "input.subset.per_class", "task.top_k"])
def test_a_number_that_only_bounds_may_be_any(field: str) -> None:
    load_job("classify", [*PLACES, f"{field}={HUGE}"])
    refs = [ImageRef(str(number), "u") for number in range(3)]
    assert list(plan.select(refs, 1.0, int(HUGE))) == refs


def test_a_study_of_too_many_trainings_is_a_mistake() -> None:
    values = "[" + ", ".join(f"0.{number:03}" for number in range(1, 100)) + "]"
    vary = [f"study.vary.train.{name}={values}" for name in ("momentum", "warmup", "label_smoothing", "ema")]
    text = "kind: study\ntask: {name: classify, model: m}\ninput: a\noutput: b\nstudy: {seeds: 2}\n"
    with pytest.raises(UserError, match=r"at most 2,000 trainings, got 192,119,202"):
        parse_job(text, "job.yaml", vary)


def test_workers_that_a_machine_can_not_start_are_a_mistake() -> None:
    require_cores(Compute(workers=2 * WORKERS_A_CORE), 2)
    with pytest.raises(UserError, match=r"compute\.workers: expected at most 32 on this machine's 2 cores"):
        require_cores(Compute(workers=2 * WORKERS_A_CORE + 1), 2)


@pytest.mark.parametrize(
    "text", ["AP=nan", "AP=inf", "AP=1_0", "AP=٣", "AP=true", "AP=null", "AP=", "=1", f"AP={'9' * 999}"]
)
def test_what_is_no_number_fails_no_comparison(text: str) -> None:
    with pytest.raises(UserError, match=r"METRIC=NUMBER|a number of at most"):
        read_gates([text])


def test_a_metric_may_have_an_equals_sign() -> None:
    assert read_gates(["TAR@FAR=1e-3=-0.01"])[0] == ("TAR@FAR=1e-3", -0.01)


# --- Patterns ---


def plainly(pattern: str) -> re.Pattern[str]:
    """Return a pattern's expression as one would write it by hand, whose time may grow without bound."""
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    text, before = "", "/"
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[ab\]|.", pattern):
        if token == "**/":
            text += "(?:.*/)?" if before == "/" else ".*/"
        else:
            text += words.get(token, "[ab]" if token == "[ab]" else re.escape(token))
        before = token[-1]
    return re.compile(text)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["a", "b", "/", "*", "**", "**/", "?", "[ab]", "."]), max_size=9).map("".join),
    st.lists(st.text("ab/.", max_size=10), max_size=12),
)
def test_a_pattern_matches_what_it_plainly_says(pattern: str, names: list[str]) -> None:
    found, plain = globs.compiled(pattern), plainly(pattern)
    assert [bool(found.fullmatch(name)) for name in names] == [bool(plain.fullmatch(name)) for name in names]


@pytest.mark.parametrize("part", ["*a", "**a", "**/*a", "*?", "[a]*", "**/", "**", "a*/", "*"])
@pytest.mark.parametrize("name", ["a" * 1024, "a/" * 512])
def test_a_pattern_of_hundreds_of_wildcards_comes_to_an_end(part: str, name: str) -> None:
    assert not globs.compiled(part * 800 + "b").fullmatch(name)


def test_a_pattern_is_no_longer_than_a_path() -> None:
    with pytest.raises(UserError, match="at most 4,096 characters, got 5,000"):
        globs.compiled("*" * 5000)


def labelled(pattern: str) -> Labelled:
    return labelled_by_pattern(None, pattern)  # type: ignore[arg-type]  # Only the pattern is looked at.


@pytest.mark.parametrize(
    ("pattern", "key"), [(r"(a|aa)+$", "a" * 60 + "b"), (r"(.*)(.*)(.*)(.*)\1\2\3\4\1x?$", "ab" * 200 + "c")]
)
def test_a_label_that_takes_for_ever_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, pattern: str, key: str
) -> None:
    monkeypatch.setattr("cnnbatch.sources.key_patterns.LONGEST_S", 0.1)
    with pytest.raises(UserError, match=r"input\.label: .* takes more than 0.1 s at the key"):
        labelled(pattern).label(key)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a{1000}){1000}",
        "((a{9999}){9999}){9999}",
        "a{,99999999}",
        "a{99999999999}",
        "(" * 5000 + ")" * 5000,
        "a" * 100_001,
    ],
)
def test_a_label_that_takes_all_memory_is_a_mistake(pattern: str) -> None:
    with pytest.raises(UserError, match=r"^input\.label: "):
        labelled(pattern)


@pytest.mark.parametrize(
    ("pattern", "key", "label"),
    [
        (r"([^/]+)/.+", "猫/1.jpg", "猫"),
        (r"(.+)_\d+\.jpg", "big_cat_12.jpg", "big_cat"),
        (r"(?i:x)(\w{2})", "X猫ab", "猫a"),
        (r"(?:a|(b))", "a", None),
        (r"cat", "cat.jpg", "cat"),
        (r"(?=(c.t))c", "cat", "cat"),
        (r"(a)(?P<x>b)\2", "abb", "a"),
    ],
)
def test_a_label_is_what_pythons_own_expressions_find(pattern: str, key: str, label: str | None) -> None:
    found = re.match(pattern, key)
    assert labelled(pattern).label(key) == label
    assert (found and (found[1 if found.re.groups else 0] or None)) == label


# --- Files ---


def test_xml_has_no_entities() -> None:
    with pytest.raises(UserError, match="it declares a document type"):
        voc_xml.parse(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "a.xml")


def test_an_annotation_of_thousands_of_objects_is_read() -> None:
    box = b"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    data = b"<annotation>" + (b"<object><name>a</name>" + box + b"</object>") * 5000 + b"</annotation>"
    assert len(voc_xml.parse(data, "a.xml")["objects"]) == 5000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"a": ' * 100_000, "{}" + " " * (4 << 20), "\ufeff\0"]
)
def test_a_key_map_is_bounded(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^task\.key_map: "):
        weights.read_key_map(str(tmp_path / "map.json"))


def test_bounds_leave_what_is_usual() -> None:
    changes = [
        "compute.batch=1024",
        "compute.workers={min: 1, max: 400}",
        "input.shard_size=10000",
        "max_failed=1",
    ]
    job: Any = load_job("classify", [*PLACES, *changes])
    assert (job.compute.batch, job.compute.workers.max, job.input.shard_size) == (1024, 400, 10_000)
