"""Classification against scikit-learn, and loops over the images."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, nan
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from cnnbatch.metrics import Evaluated, Value, label_rows
from cnnbatch.metrics import classification as metric
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.tasks.classify import Classify

CLASSES = ["zebra", "ant", "failed", "bee", "cat", "dog", "eel"]
"""The order of a model is not that of its names; a class may have any name."""
FAILED = "(failed)"
ERROR = pa.struct([("stage", pa.string()), ("code", pa.string()), ("message", pa.string())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("error", ERROR),
        *Classify(name="classify", model="m", probabilities=True).columns(),
    ]
)


@dataclass(frozen=True)
class Seen:
    """An image: its truth, and the probabilities (C,) float32, None where it failed."""

    truth: str
    probabilities: NDArray[np.float32] | None


def row(number: int, seen: Seen, names: Sequence[str], best: int) -> dict[str, Any]:
    if seen.probabilities is None:
        return {"key": f"{number}.jpg", "error": {"stage": "decode", "code": "truncated", "message": "short"}}
    order = np.argsort(-seen.probabilities, kind="stable")[:best]
    top = [{"label": names[place], "score": seen.probabilities[place]} for place in order]
    true = seen.probabilities[names.index(seen.truth)] if seen.truth in names else None
    return {
        "key": f"{number}.jpg",
        **top[0],
        "top": top,
        "true_score": true,
        "probabilities": seen.probabilities,
    }


def tables(
    images: Iterable[Seen], names: Sequence[str] = CLASSES, best: int = 5
) -> tuple[pa.Table, pa.Table]:
    images = list(images)
    rows = [row(number, seen, names, best) for number, seen in enumerate(images)]
    truth = pa.table({"label": pa.array([seen.truth for seen in images], pa.string())})
    return pa.Table.from_pylist(rows, SCHEMA), truth


def test_labels_alone_are_enough() -> None:
    predictions, truth = tables(drawn(np.random.default_rng(3), 50))
    alone = predictions.select(["key", "error", "label"])
    known = metric.result(metric.partial(predictions, truth, CLASSES)).metrics
    found = metric.result(metric.partial(alone, truth, CLASSES)).metrics
    lacking = {"top5", "log_loss", "ECE"}
    assert {name: value for name, value in found.items() if name not in lacking} == {
        name: value for name, value in known.items() if name not in lacking
    }
    assert all(found[name].value is None and found[name].reason for name in lacking)


def evaluated(images: Iterable[Seen], names: Sequence[str] = CLASSES, best: int = 5) -> Evaluated:
    return metric.result(metric.merge([metric.partial(*tables(images, names, best), names)]))


def numbers(found: Evaluated) -> dict[str, float]:
    return {name: number(value.value) for name, value in found.metrics.items()}


def number(value: float | None) -> float:
    return nan if value is None else value


def drawn(rng: np.random.Generator, count: int, failed: float = 0.1) -> list[Seen]:
    truth = rng.integers(0, len(CLASSES), count)
    logits = rng.normal(size=(count, len(CLASSES))) + 1.5 * np.eye(len(CLASSES))[truth]
    exp = np.exp(2 * logits)
    probabilities = (exp / exp.sum(axis=1, keepdims=True)).astype(np.float32)
    missing = rng.random(count) < failed
    return [
        Seen(CLASSES[one], None if lost else each)
        for one, each, lost in zip(truth, probabilities, missing, strict=True)
    ]


def predicted(seen: Seen) -> str:
    return FAILED if seen.probabilities is None else CLASSES[int(np.argmax(seen.probabilities))]


def gap(images: Sequence[Seen]) -> float:
    """Return the expected calibration error by its definition: bins ((m - 1) / M, m / M]."""
    bins: dict[int, list[tuple[bool, float]]] = {}
    for seen in images:
        if seen.probabilities is not None:
            score = float(seen.probabilities.max())
            bins.setdefault(ceil(score * 15), []).append((predicted(seen) == seen.truth, score))
    count = sum(len(each) for each in bins.values())
    gaps = (
        len(each) / count * abs(np.mean([right for right, _ in each]) - np.mean([score for _, score in each]))
        for each in bins.values()
    )
    return float(sum(gaps)) if count else nan


def expected(images: Sequence[Seen]) -> dict[str, float]:
    """Return the numbers by scikit-learn and by loops."""
    truth, said = [seen.truth for seen in images], [predicted(seen) for seen in images]
    fine = [seen for seen in images if seen.probabilities is not None]
    labels = sorted({*truth, *said} - {FAILED})
    found = {"top1": float(np.mean(np.array(truth) == said))}
    for average in ("macro", "weighted"):
        means = precision_recall_fscore_support(truth, said, labels=labels, average=average, zero_division=0)
        for name, mean in zip(("precision", "recall", "F1"), means[:3], strict=True):
            found[f"{name}_{average}"] = float(mean)
    return found | {"log_loss": losses(fine) if fine else nan, "ECE": gap(images)}


def losses(fine: Sequence[Seen]) -> float:
    order = np.argsort(CLASSES)
    scores = np.array([seen.probabilities for seen in fine])[:, order]
    return float(log_loss([seen.truth for seen in fine], scores, labels=sorted(CLASSES)))


PROBABILITIES = st.lists(st.integers(0, 6), min_size=7, max_size=7).filter(any)
IMAGES = st.lists(
    st.builds(
        Seen,
        st.sampled_from(CLASSES),
        st.none() | PROBABILITIES.map(lambda some: (np.array(some) / sum(some)).astype(np.float32)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(images=IMAGES)
def test_as_scikit_learn_and_by_loops(images: list[Seen]) -> None:
    found = numbers(evaluated(images))
    found.pop("top5")
    assert found == pytest.approx(
        expected(images), rel=2e-6, abs=1e-7, nan_ok=True
    )  # scikit-learn sums float32.


def test_the_best_five_as_scikit_learn() -> None:
    images = drawn(np.random.default_rng(0), 300, failed=0)
    order = np.argsort(CLASSES)
    scores = np.array([seen.probabilities for seen in images])[:, order]
    truth, labels = [seen.truth for seen in images], sorted(CLASSES)
    found = evaluated(images).metrics
    assert found["top1"].value == top_k_accuracy_score(truth, scores, k=1, labels=labels)
    assert found["top5"].value == top_k_accuracy_score(truth, scores, k=5, labels=labels)


def test_the_confusion_as_scikit_learn() -> None:
    images = drawn(np.random.default_rng(1), 300)
    labels = [*CLASSES, FAILED]
    matrix = np.zeros((len(labels), len(labels)), int)
    for cell in evaluated(images).tables["confusion"].to_pylist():
        assert cell["failed"] == (cell["predicted"] is None)
        matrix[labels.index(cell["truth"]), labels.index(cell["predicted"] or FAILED)] = cell["count"]
    truth, said = [seen.truth for seen in images], [predicted(seen) for seen in images]
    assert matrix.tolist() == confusion_matrix(truth, said, labels=labels).tolist()


def same(one: metric.ClassificationPartial, other: metric.ClassificationPartial) -> bool:
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-12)
    np.testing.assert_allclose(one.bins, other.bins, rtol=1e-12)
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("names", "classes", "cells", "cell_counts", "right_in_5", "short")
    )


@settings(max_examples=40, deadline=None)
@given(images=IMAGES, cuts=st.lists(st.integers(0, 12), max_size=3), backwards=st.booleans())
def test_any_split_gives_what_one_piece_gives(images: list[Seen], cuts: list[int], backwards: bool) -> None:
    predictions, truth = tables(images)
    ends = [0, *sorted(cuts), len(images)]
    parts = [
        metric.partial(predictions.slice(a, max(0, b - a)), truth.slice(a, max(0, b - a)), CLASSES)
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    whole = metric.partial(predictions, truth, CLASSES)
    assert pa.concat_tables([part.images for part in parts]).equals(whole.images)
    parts = pickle.loads(pickle.dumps(parts[::-1] if backwards else parts))
    merged = metric.merge([parts[0], metric.merge(parts[1:])])
    assert same(whole, merged)
    assert merged.images.equals(label_rows.SCHEMA.empty_table())
    one, other = metric.result(whole), metric.result(merged)
    for name, value in one.metrics.items():
        again = other.metrics[name]
        assert (again.count, again.reason) == (value.count, value.reason)
        for a, b in ((again.value, value.value), (again.low, value.low), (again.high, value.high)):
            assert number(a) == pytest.approx(number(b), rel=1e-12, abs=1e-12, nan_ok=True)


def test_a_replicate_is_the_images_as_often_as_their_weights() -> None:
    images = drawn(np.random.default_rng(2), 60)
    found = metric.partial(*tables(images), CLASSES)
    weights = poisson_weights(f"{number}.jpg" for number in range(len(images)))
    for at in range(1, 5):
        again = [seen for seen, often in zip(images, weights[:, at - 1], strict=True) for _ in range(often)]
        ours = {name: values[at] for name, values in metric._measures(found.classes).items()}
        images_, right, scores = found.bins[..., at].T
        ours["ECE"] = np.abs(right - scores).sum() / images_.sum()
        ours["log_loss"] = found.loss[0, at] / found.loss[1, at]
        theirs = expected(again)
        theirs.pop("top1")
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_an_interval_covers_the_true_number_about_as_often_as_it_says() -> None:
    """Where a class has ten images, resampling adds a bias that plain percentiles don't survive."""
    rng = np.random.default_rng(3)
    classes, count, runs, true = 30, 300, 40, 0.5  # Each class is right as often, so this is each number.
    names: Any = pa.array([f"class {number}" for number in range(classes)])
    covered = {"precision_weighted": 0, "recall_weighted": 0, "F1_macro": 0}
    for run in range(runs):
        truth = rng.integers(0, classes, count)
        wrong = (truth + rng.integers(1, classes, count)) % classes
        said = names.take(pa.array(np.where(rng.random(count) < true, truth, wrong)))
        keys = pa.array([f"{run}/{number}" for number in range(count)])
        others = {field.name: pa.nulls(count, field.type) for field in SCHEMA}
        predictions = pa.table({**others, "key": keys, "label": said})
        labels = pa.table({"label": names.take(pa.array(truth))})
        found = metric.result(metric.partial(predictions, labels)).metrics
        for name in covered:
            covered[name] += number(found[name].low) <= true <= number(found[name].high)
    assert min(covered.values()) >= 0.875 * runs


def test_a_hand_computed_example() -> None:
    def seen(truth: str, *probabilities: float) -> Seen:
        return Seen(truth, np.array(probabilities, np.float32))

    names = ["b", "a"]
    images = [seen("a", 0.25, 0.75), seen("a", 1, 0), seen("b", 0.75, 0.25), Seen("b", None)]
    found = evaluated(images, names)
    eps = float(np.finfo(np.float32).eps)
    assert numbers(found) == pytest.approx(
        {
            "top1": 2 / 4,
            "top5": 3 / 4,
            "precision_macro": (1 + 1 / 2) / 2,
            "recall_macro": 1 / 2,
            "F1_macro": (2 / 3 + 1 / 2) / 2,
            "precision_weighted": (1 + 1 / 2) / 2,
            "recall_weighted": 1 / 2,
            "F1_weighted": (2 / 3 + 1 / 2) / 2,
            "log_loss": (-2 * np.log(0.75) - np.log(eps)) / 3,
            "ECE": (2 * 0.25 + 1) / 3,
        },
        rel=1e-12,
    )
    assert [value.count for value in found.metrics.values()] == [4] * 8 + [3, 3]
    assert found.tables["classes"].to_pylist() == [
        {"label": "a", "truths": 2, "predicted": 1, "right": 1}
        | {"precision": 1, "recall": 0.5, "F1": pytest.approx(2 / 3)},
        {"label": "b", "truths": 2, "predicted": 2, "right": 1, "precision": 0.5, "recall": 0.5, "F1": 0.5},
    ]
    assert found.tables["confusion"].to_pylist() == [
        {"truth": "a", "predicted": "a", "failed": False, "count": 1},
        {"truth": "a", "predicted": "b", "failed": False, "count": 1},
        {"truth": "b", "predicted": "b", "failed": False, "count": 1},
        {"truth": "b", "predicted": None, "failed": True, "count": 1},
    ]
    bins = found.tables["calibration"].to_pylist()
    assert len(bins) == 15
    assert {number: bin_ for number, bin_ in enumerate(bins) if bin_["count"]} == {
        11: {"low": 11 / 15, "high": 12 / 15, "count": 2, "confidence": 0.75, "accuracy": 1},
        14: {"low": 14 / 15, "high": 1, "count": 1, "confidence": 1, "accuracy": 0},
    }
    assert bins[0]["confidence"] is bins[0]["accuracy"] is None
    assert metric.partial(*tables(images, names), names).images.to_pylist() == [
        {"key": "0.jpg", "label": "a", "predicted": "a", "score": 0.75}
        | {"right": True, "right_in_5": True, "loss": -np.log(0.75)},
        {"key": "1.jpg", "label": "a", "predicted": "b", "score": 1}
        | {"right": False, "right_in_5": True, "loss": -np.log(eps)},
        {"key": "2.jpg", "label": "b", "predicted": "b", "score": 0.75}
        | {"right": True, "right_in_5": True, "loss": -np.log(0.75)},
        {"key": "3.jpg", "label": "b", "predicted": None, "score": None}
        | {"right": False, "right_in_5": False, "loss": None},
    ]


def test_a_class_that_is_never_predicted_or_never_true() -> None:
    images = [Seen("ant", np.eye(7, dtype=np.float32)[0]), Seen("unknown to the model", None)]
    found = evaluated(images)
    rows = {each["label"]: each for each in found.tables["classes"].to_pylist()}
    assert [rows["ant"][name] for name in ("precision", "recall", "F1")] == [None, 0, 0]
    assert [rows["zebra"][name] for name in ("precision", "recall", "F1")] == [0, None, 0]
    assert numbers(found)["precision_macro"] == 0


def test_true_scores_come_from_either_column() -> None:
    images = [*drawn(np.random.default_rng(4), 30), Seen("of no model", np.eye(7, dtype=np.float32)[0])]
    predictions, truth = tables(images)
    scores = [None if n % 2 else score for n, score in enumerate(predictions["true_score"].to_pylist())]
    at = predictions.schema.get_field_index("true_score")
    some = predictions.set_column(at, "true_score", pa.array(scores, pa.float32()))
    vectors = predictions["probabilities"].to_pylist()
    for some_columns in (
        predictions,
        some,
        predictions.drop_columns(["true_score"]),
        predictions.drop_columns(["probabilities"]),
        some.set_column(some.schema.get_field_index("probabilities"), "probabilities", pa.array(vectors)),
    ):
        found = metric.partial(some_columns, truth, CLASSES)
        assert found.images.equals(metric.partial(predictions, truth).images)
        assert found.loss[1, 0] == sum(seen.probabilities is not None for seen in images) - 1


def test_what_was_not_written_is_null_with_its_reason() -> None:
    images = drawn(np.random.default_rng(5), 20)
    short = metric.result(metric.partial(*tables(images, best=3), CLASSES)).metrics
    assert short["top5"] == Value(None, reason=metric.SHORT_TOP)
    predictions, truth = tables(images)
    bare = predictions.drop_columns(["true_score", "probabilities"])
    assert metric.result(metric.partial(bare, truth)).metrics["log_loss"] == Value(
        None, reason=metric.NO_TRUE_SCORES
    )
    without_names = predictions.drop_columns(["true_score"])
    assert metric.result(metric.partial(without_names, truth)).metrics["log_loss"].value is None


def test_a_short_top_is_all_of_a_small_model() -> None:
    names, images = ["a", "b"], [Seen("a", np.array([0.2, 0.8], np.float32))]
    assert evaluated(images, names).metrics["top5"].value == 1
    assert metric.result(metric.partial(*tables(images, names))).metrics["top5"].value is None


def test_only_failures_and_nothing_at_all() -> None:
    failed = evaluated([Seen("ant", None)] * 3).metrics
    unknown = Value(None, reason=metric.NO_SCORES)
    assert (failed["log_loss"], failed["ECE"]) == (unknown, unknown)
    assert {value.value for name, value in failed.items() if name not in ("log_loss", "ECE")} == {0}
    nothing = metric.result(metric.merge([]))
    assert all(value.value is None and value.reason for value in nothing.metrics.values())
    assert nothing.tables["confusion"].num_rows == nothing.tables["classes"].num_rows == 0


def test_what_does_not_fit_together_is_refused() -> None:
    predictions, truth = tables(drawn(np.random.default_rng(6), 3, failed=0))
    with pytest.raises(ValueError, match="got 2 for 3"):
        metric.partial(predictions, truth.slice(1), CLASSES)
    with pytest.raises(ValueError, match="3 have none"):
        metric.partial(predictions, pa.table({"label": pa.nulls(3, pa.string())}), CLASSES)
    with pytest.raises(ValueError, match="Expected 2 probabilities"):
        metric.partial(predictions, truth, CLASSES[:2])
